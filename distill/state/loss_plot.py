"""Losses over the steps of every stage, as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb_edge.util.plot import MARKERS, PAPER, caption, dress, list_names, write_figure

KL_CAPTION = "KL from the base's predictions, nats; dots: held-out (and with spikes)"

TITLES = {
    "layers": ("Layer by layer", "normalised error of each layer's output; bold: mean; dots: held-out"),
    "whole": ("End to end", KL_CAPTION),
    "long": ("Growing length", KL_CAPTION),
}

Curve = Sequence[Mapping[str, Any]]


Measured = Mapping[str, Sequence[Mapping[str, Any]]]


def plot_losses(path: Path, curves: Mapping[str, Curve], measured: Measured) -> None:
    """Draw the stages side by side, losses above and retrieval below.

    Args:
        path: a PNG, SVG or PDF.
        curves: For each stage, points with "step" and "losses" [n].
        measured: For each stage, points with "step", and "losses" of held-out text and "found" by kind of
            case where they were measured.

    Raises:
        OutputError: the file cannot be written.
    """

    def draw(figure: Figure) -> None:
        rows = figure.subplots(2, len(curves), squeeze=False)
        for (losses, recall), (name, curve) in zip(rows.T, curves.items(), strict=True):
            points = measured.get(name, ())
            _draw_stage(losses, name, curve, [point for point in points if "losses" in point])
            _draw_recall(recall, [point for point in points if "found" in point])

    write_figure(path, (5.5 * len(curves), 8.0), draw)


def _draw_stage(axes: Axes, name: str, curve: Curve, held_out: Curve) -> None:
    steps = [point["step"] for point in curve]
    losses = np.array([point["losses"] for point in curve])  # [points, n]
    if losses.shape[1] > 1:
        axes.plot(steps, losses, color=PAPER.series[0], lw=0.7, alpha=0.5)
    axes.plot(steps, losses.mean(axis=1), color=PAPER.series[0], lw=2.2)
    for key, colour in (("losses", PAPER.series[1]), ("spike_losses", PAPER.series[2])):
        points = [(point["step"], np.mean(point[key])) for point in held_out if key in point]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=colour, ms=4)
    axes.set_yscale("log")
    caption(axes, PAPER, *TITLES[name])
    dress(axes, PAPER, "optimizer steps")


def _draw_recall(axes: Axes, points: Curve) -> None:
    kinds = list(points[0]["found"]) if points else []
    for kind, colour, marker in zip(kinds, PAPER.series, MARKERS, strict=False):
        found = [100 * point["found"][kind] for point in points]
        axes.plot([point["step"] for point in points], found, color=colour, marker=marker, label=kind)
    axes.set_ylim(0, 100)
    caption(axes, PAPER, "Retrieval", "answers found in the context, %")
    list_names(axes, list(zip(kinds, PAPER.series, strict=False)))
    dress(axes, PAPER, "optimizer steps")
