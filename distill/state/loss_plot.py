"""Losses over the steps of every stage, as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb_edge.util.plot import PAPER, caption, dress, write_figure

TITLES = {
    "layers": ("Layer by layer", "normalised error of each layer's output; bold: mean"),
    "whole": ("End to end", "KL from the base's predictions, nats"),
    "long": ("Growing length", "KL from the base's predictions, nats"),
}

Curve = Sequence[Mapping[str, Any]]


def plot_losses(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draw the stages side by side.

    Args:
        path: a PNG, SVG or PDF.
        curves: For each stage, points with "step" and "losses" [n].

    Raises:
        OutputError: the file cannot be written.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(curves), squeeze=False)[0]
        for place, (name, curve) in zip(axes, curves.items(), strict=True):
            _draw_stage(place, name, curve)

    write_figure(path, (5.5 * len(curves), 4.2), draw)


def _draw_stage(axes: Axes, name: str, curve: Curve) -> None:
    steps = [point["step"] for point in curve]
    losses = np.array([point["losses"] for point in curve])  # [points, n]
    if losses.shape[1] > 1:
        axes.plot(steps, losses, color=PAPER.series[0], lw=0.7, alpha=0.5)
    axes.plot(steps, losses.mean(axis=1), color=PAPER.series[0], lw=2.2)
    axes.set_yscale("log")
    caption(axes, PAPER, *TITLES[name])
    dress(axes, PAPER, "optimizer steps")
