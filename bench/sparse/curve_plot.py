"""Plot of the sparse product's speed by share of silent channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sb_edge.bench.sparse.curve import SparseCurve
from sb_edge.util import plot
from sb_edge.util.plot import PAPER


def save_curves(curves: Sequence[SparseCurve], folder: Path) -> list[Path]:
    """Write sparse.png and sparse.svg into a folder, which is created if absent.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    return plot.write_figures(folder, {"sparse": ((9, 4.8), lambda figure: _draw(figure, curves))})


def _draw(figure: Figure, curves: Sequence[SparseCurve]) -> None:
    axes = figure.subplots()
    ends = []
    for curve, colour, marker in zip(curves, PAPER.series * 2, plot.MARKERS * 2, strict=False):
        shares = [100 * point.silent for point in curve.points]
        values = [point.ratio.value for point in curve.points]
        lows, highs = zip(*(point.ratio.bounds for point in curve.points), strict=True)
        axes.fill_between(shares, lows, highs, color=colour, alpha=0.2, lw=0)
        axes.plot(shares, values, color=colour, marker=marker, ms=5, lw=1.6)
        ends.append((values[-1], curve.label, colour))
    axes.axhline(1, **plot.DASHED)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10) if low <= tick <= high]
    plot.fix_ticks(axes.yaxis, ticks)
    threads = curves[0].n_threads
    plot.dress(axes, PAPER, f"silent channels, %\none token, {threads} thread{'s' if threads > 1 else ''}")
    plot.caption(
        axes,
        PAPER,
        "Speed of the sparse product over the dense product",
        "logarithmic; shaded: 95 % interval; dashed: equal speed",
    )
    plot.label_ends(axes, ends)
