"""Plots of spike statistics: histogram of counts, spikes by layer, sweep of k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from sb_edge.bench.spikes.sweep import REPORTED_SWEEP, Sweep
from sb_edge.evaluate.spike_stats import SpikeReport, SpikeStats, by_projection, of_site, total
from sb_edge.runtime.spike_counters import SiteCounts
from sb_edge.util import plot
from sb_edge.util.plot import PAPER

LANDMARKS = {7: "7: three bits", 16: "16", 127: "127: int8"}
"""Counts marked in the histogram: limits used by the report and by the kernels."""

COUNT_TICKS = (0, 1, 3, 7, 16, 32, 64, 127, 256, 512, 1023)

SINGLE_COUNTS = 32
"""Number of single-count bins; further bins are an eighth of an octave wide."""

WIDE_K = 12.0
"""Ratio of largest to smallest k above which the axis is logarithmic."""


def save_report_plots(report: SpikeReport, folder: Path) -> list[Path]:
    """Write counts.png, counts.svg, layers.png and layers.svg into a folder, which is created if absent.

    Raises:
        OutputError: the folder cannot be created or written to.
    """

    def counts(figure: Figure) -> None:
        _draw_counts(figure.subplots(), report)

    def layers(figure: Figure) -> None:
        _draw_layers(figure, report)

    return plot.write_figures(folder, {"counts": ((9, 4.8), counts), "layers": ((13, 4.8), layers)})


def save_sweep_plot(sweep: Sweep, folder: Path) -> list[Path]:
    """Write sweep.png and sweep.svg into a folder, which is created if absent.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    return plot.write_figures(folder, {"sweep": ((13, 4.6), lambda figure: _draw_sweep(figure, sweep))})


def short_label(projections: Sequence[str]) -> str:
    """Projection names in short form.

    >>> short_label(("attn_q", "attn_k", "attn_v", "ssm_f"))
    'attn_q/k/v, ssm_f'
    """
    families: dict[str, list[str]] = {}
    for name in projections:
        family, _, member = name.partition("_")
        families.setdefault(family, []).append(member)
    return ", ".join(
        f"{family}_{'/'.join(members)}" if members[0] else family for family, members in families.items()
    )


def _draw_counts(axes: Axes, report: SpikeReport) -> None:
    """Share of entries by |s|, both axes logarithmic: all inputs shaded, projections as lines."""
    everything = total(report.sites)
    edges, shares = _shares(everything)
    axes.fill_between(_place(edges), np.append(shares, shares[-1]), step="post", color=PAPER.grid)
    names = []
    for group, colour in zip(by_projection(report.sites), PAPER.series * 2, strict=False):
        edges, shares = _shares(group)
        axes.step(_place(edges), np.append(shares, shares[-1]), where="post", color=colour, lw=1.3)
        names.append((short_label(group.projections), colour))
    floor = 0.1 / everything.entries
    axes.set_yscale("log")
    axes.set_ylim(floor, 1)
    last = min(everything.largest, len(everything.histogram) - 1)
    axes.set_xlim(float(_place(-0.5)), float(_place(max(last, 18) + 0.5)))
    ticks = [tick for tick in COUNT_TICKS if _place(tick) <= axes.get_xlim()[1]]
    axes.xaxis.set_major_locator(FixedLocator([float(_place(tick)) for tick in ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([_tick(tick, everything) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    for count, name in LANDMARKS.items():
        if count < last:
            place = float(_place(count + 0.5))
            axes.axvline(place, **plot.DASHED)
            side = -1 if count == min(LANDMARKS) else 1  # no room between the first two lines
            axes.annotate(
                name,
                (place, 1),
                (4 * side, -11),
                textcoords="offset points",
                color=PAPER.ink,
                fontsize=9,
                ha="right" if side < 0 else "left",
            )
    plot.dress(axes, PAPER, f"spikes |s| of a channel\n{report.model}, {report.tokens} tokens")
    detail = f"both axes logarithmic (|s| + 1); counts above {SINGLE_COUNTS}: mean of a bin"
    plot.caption(axes, PAPER, "Share of entries (one channel, one token) by count", detail)
    plot.list_names(axes, [("all inputs", PAPER.ink), *names], top=16)


def _draw_layers(figure: Figure, report: SpikeReport) -> None:
    sites, source = report.sites, f"{report.model}, {report.tokens} tokens"
    sparsity, spikes = figure.subplots(1, 2)
    gla = any("ssm_f" in site.projections for site in sites)
    detail = "shaded: layers of gated linear attention" if gla else "all layers: sliding-window attention"
    _draw_by_layer(sparsity, sites, source, lambda stats: 100 * stats.window_sparsity)
    plot.caption(sparsity, PAPER, "Empty slots in windows of three steps, %", detail)
    _draw_by_layer(spikes, sites, source, lambda stats: stats.spikes_per_channel["bitwise"])
    plot.caption(spikes, PAPER, "Spikes per channel, bitwise coding", detail)


def _draw_by_layer(
    axes: Axes, sites: Sequence[SiteCounts], source: str, value: Callable[[SpikeStats], float]
) -> None:
    layers = sorted({site.layer for site in sites})
    for layer in {site.layer for site in sites if "ssm_f" in site.projections}:
        axes.axvspan(layer - 0.5, layer + 0.5, color=PAPER.grid, alpha=0.6, lw=0)
    ends = []
    groups = [group for group in by_projection(sites) if group.projections != ("ssm_f",)]
    for group, colour, marker in zip(groups, PAPER.series * 2, plot.MARKERS * 2, strict=False):
        ys = [value(of_site(site)) for site in group.sites]
        axes.plot([site.layer for site in group.sites], ys, color=colour, marker=marker, ms=4, lw=1.4)
        ends.append((ys[-1], short_label(group.projections), colour))
    axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.08)
    plot.dress(axes, PAPER, f"layer\n{source}")
    plot.label_ends(axes, ends)


def _draw_sweep(figure: Figure, sweep: Sweep) -> None:
    quality, activity = figure.subplots(1, 2)
    points = sorted((point for point in sweep.points if point.k is not None), key=lambda point: point.k or 0)
    ks = [point.k or 0.0 for point in points]
    wide = max(ks) > WIDE_K * min(ks)
    reported = [k for k in sorted(REPORTED_SWEEP) if min(ks) <= k <= max(ks)]
    blue, orange, green = PAPER.series[:3]
    quality.axhline(1, **plot.DASHED)
    quality.plot(ks, [sweep.ratio(point) for point in points], color=blue, marker="o", lw=2)
    quality.margins(x=0.06, y=0.1)
    plot.caption(quality, PAPER, "Perplexity over that without spikes", "1: no loss")
    ends = []
    for label, colour, measured, theirs in (
        ("≤ 7", green, [100 * point.stats.share_at_most_7 for point in points], "share_at_most_7"),
        ("empty slots", orange, [100 * point.stats.window_sparsity for point in points], "sparsity"),
    ):
        activity.plot(ks, measured, color=colour, marker="o", lw=2)
        if reported:
            values = [100 * float(getattr(REPORTED_SWEEP[k], theirs)) for k in reported]
            activity.plot(reported, values, color=colour, marker="D", ms=5, mfc="none", lw=1.2, ls="--")
        ends.append((measured[-1], label, colour))
    activity.set_ylim(0, 103)
    plot.caption(
        activity, PAPER, "Counts and slots, %", "≤ 7: share of counts; dashed, hollow: the report's 7B"
    )
    for axes in (quality, activity):
        if wide:
            axes.set_xscale("log")
        plot.fix_ticks(axes.xaxis, _apart(ks, wide))
        scale = " (logarithmic)" if wide else ""
        plot.dress(axes, PAPER, f"k{scale}\n{sweep.model}, {sweep.tokens} tokens")
    plot.label_ends(activity, ends)


def _apart(ks: Sequence[float], wide: bool) -> list[float]:
    """Values whose labels do not overlap: at least a twentieth of the axis apart."""
    places = [math.log(k) if wide else k for k in ks]
    least = 0.05 * (places[-1] - places[0])
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= least:
            kept.append(index)
    return [ks[index] for index in kept]


def _shares(stats: SpikeStats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges and shares of bins: single counts up to `SINGLE_COUNTS`, then wider bins.

    A wider bin has the mean share of its counts, which smooths the line of rare counts.
    """
    counts = np.trim_zeros(stats.histogram, "b").astype(np.float64)
    edges: NDArray[np.int64] = np.arange(min(len(counts), SINGLE_COUNTS) + 1)
    if len(counts) > SINGLE_COUNTS:
        octaves = np.arange(1, math.ceil(8 * math.log2(len(counts) / SINGLE_COUNTS)) + 1) / 8
        edges = np.append(edges, np.unique(np.round(SINGLE_COUNTS * 2**octaves).astype(int)))
    padded = np.append(counts, np.zeros(edges[-1] - len(counts)))
    return edges - np.float64(0.5), np.add.reduceat(padded, edges[:-1]) / np.diff(edges) / stats.entries


def _place(count: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log2(np.asarray(count, dtype=np.float64) + 1)


def _tick(count: int, stats: SpikeStats) -> str:
    overflow = count == len(stats.histogram) - 1 and stats.largest > count
    return f"{count}+" if overflow else str(count)
