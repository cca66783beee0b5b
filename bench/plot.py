"""Plots of the results: speed over depth and memory over depth, for files and for the report."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from sb_edge.bench.results import Row
from sb_edge.bench.tables import format_depth, series_name
from sb_edge.errors import OutputError
from sb_edge.files import atomic_output
from sb_edge.output import format_bytes

LOG_SPEED_RATIO = 12.0
"""Speeds further apart than this are drawn on a logarithmic axis, where equal factors are equal distances."""

LABEL_GAP = 0.075
"""Least vertical distance of two direct labels, as a share of the axis."""

MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Theme:
    """Colours: text and axes, grid lines, what lies behind hollow markers, one for each series in turn."""

    ink: str
    grid: str
    background: str
    series: tuple[str, ...]


PAPER = Theme(
    ink="#1c2430",
    grid="#d8dde5",
    background="#ffffff",
    series=("#0b62b0", "#c2500a", "#0a7a55", "#8a3fa0", "#8a6d00", "#b3204d"),
)
"""For files: dark on white."""

PAGE = Theme(
    ink="#010101",
    grid="#020202",
    background="#040404",
    series=("#030301", "#030302", "#030303", "#030304", "#030305", "#030306"),
)
"""Placeholders that become the page's CSS variables, so that one plot suits light and dark."""

DASHED: Any = {"color": PAPER.ink, "lw": 0.9, "ls": (0, (4, 3))}
"""Of a line that marks a value."""

STYLE: Any = {  # the type of matplotlib's settings differs between its versions
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "sb-edge",
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Value = Callable[[Row], float]


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw speed and memory over depth side by side; the name's ending chooses PNG, SVG or PDF.

    Raises:
        OutputError: an ending that is none of these, nothing to draw, or the file cannot be written.
    """
    if not rows:
        raise OutputError("there are no rows to draw", path=path)

    def draw(figure: Figure) -> None:
        speed, memory = figure.subplots(1, 2)
        _draw_speed(speed, rows, PAPER)
        _draw_memory(memory, rows, PAPER)

    write_figure(path, (13, 4.6), draw)


def write_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Write a figure in the house style; the name's ending chooses PNG, SVG or PDF.

    Args:
        path: of the file.
        size: width and height in inches.
        draw: fills the empty figure.

    Raises:
        OutputError: an ending that is none of these, or the file cannot be written.
    """
    kind = require_image_name(path)
    with matplotlib.rc_context(STYLE), atomic_output(Path(path)) as partial:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(partial, format=kind, dpi=150, facecolor=PAPER.background)


def require_image_name(path: Path) -> str:
    """The kind of image that a name's ending stands for: png, svg or pdf.

    Raises:
        OutputError: another ending.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise OutputError("unknown kind of plot", path=path, found=f".{kind}", expected=".png, .svg or .pdf")
    return kind


def speed_svg(rows: Sequence[Row]) -> str:
    """Speed over depth as an SVG element for a page that defines --ink, --grid, --card, --series-1 ... -6."""
    return _inline_svg(_draw_speed, rows)


def memory_svg(rows: Sequence[Row]) -> str:
    """Memory over depth, likewise."""
    return _inline_svg(_draw_memory, rows)


def _inline_svg(draw: Callable[[Axes, Sequence[Row], Theme], None], rows: Sequence[Row]) -> str:
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": draw.__name__}):
        figure = Figure(figsize=(8.4, 4.0), layout="constrained")
        draw(figure.subplots(), rows, PAGE)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # A size in points would keep the plot from following the page's width; the viewBox keeps its shape.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for placeholder, variable in ((PAGE.ink, "ink"), (PAGE.grid, "grid"), (PAGE.background, "card")):
        svg = svg.replace(placeholder, f"var(--{variable})")
    for number, colour in enumerate(PAGE.series, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg


def _draw_speed(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    slowest = min(min(row.samples_ts) for row in rows)
    fastest = max(max(row.samples_ts) for row in rows)
    if fastest > LOG_SPEED_RATIO * slowest:
        axes.set_yscale("log")
        fix_ticks(axes.yaxis, _steps(slowest, fastest))
        axes.set_ylim(slowest / 1.3, fastest * 1.3)
    else:
        axes.set_ylim(0, 1.12 * fastest)
    for series, colour in _series(rows, theme):
        for row in series:
            axes.plot([_x(row, rows)] * 2, [min(row.samples_ts), max(row.samples_ts)], color=colour, lw=1.2)
    _draw_lines(axes, rows, theme, lambda row: row.median_ts)
    hollow = "; hollow: synthetic fill" if any(row.fill == "synthetic" for row in rows) else ""
    detail = f"median; bars: slowest and fastest repetition{hollow}"
    caption(axes, theme, "Decode speed, tokens per second", detail)


def _draw_memory(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    sizes = [_context_bytes(row) for row in rows]
    low, high = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    step = max(1, (high - low) // 6)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + step, step)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_bytes(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(2.0 ** (low - 0.5), 2.0 ** (high + 0.5))
    _draw_lines(axes, rows, theme, _context_bytes)
    caption(axes, theme, "Memory of the context", "KV cache and recurrent state, without weights")


def _context_bytes(row: Row) -> float:
    return max(row.context_bytes, 1)


def _draw_lines(axes: Axes, rows: Sequence[Row], theme: Theme, value: Value) -> None:
    """Lines, markers, axes and labels, for axes whose vertical scale is set already."""
    for (series, colour), marker in zip(_series(rows, theme), MARKERS * len(rows), strict=False):
        xs, ys = [_x(row, rows) for row in series], [value(row) for row in series]
        axes.plot(xs, ys, color=colour, lw=2)
        for x, y, row in zip(xs, ys, series, strict=True):
            face = colour if row.fill == "real" else theme.background
            axes.plot(x, y, marker=marker, ms=7, color=colour, mfc=face, mew=1.6, ls="none")
    _mark_depths(axes, rows, theme)
    label_ends(
        axes,
        [
            (value(series[-1]), series_name(series[-1], rows), colour)
            for series, colour in _series(rows, theme)
        ],
    )


def _mark_depths(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    depths = sorted({row.n_depth for row in rows})
    places = [_place(depth, rows) for depth in depths]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FixedFormatter([format_depth(depth) for depth in depths]))
    margin = 0.06 * max(places[-1] - places[0], 1)
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    dress(axes, theme, "tokens in the context (logarithmic)")


def dress(axes: Axes, theme: Theme, xlabel: str) -> None:
    """Horizontal grid lines behind the data, no tick marks, the theme's colours."""
    axes.set_xlabel(xlabel, color=theme.ink)
    axes.grid(axis="y", color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)


def fix_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Ticks at these values and no others, written as plain numbers."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def caption(axes: Axes, theme: Theme, title: str, detail: str) -> None:
    """A bold title at the left, and below it what a reader has to know."""
    axes.set_title(title, loc="left", color=theme.ink, fontsize=12, fontweight="bold", pad=24)
    axes.annotate(
        detail, (0, 1), (0, 8), "axes fraction", textcoords="offset points", color=theme.ink, fontsize=9
    )


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at their right ends, in their colours; labels that would overlap are moved apart.

    Args:
        axes: their vertical limits are final.
        ends: of each line, the value that it ends with, its name and its colour.
    """
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(np.array(axes.get_ylim()))
    ends = sorted(ends)
    heights = (scale.transform(np.array([value for value, _, _ in ends])) - low) / (high - low)
    for height, (_, name, colour) in zip(spread(heights.tolist()), ends, strict=True):
        axes.annotate(
            name, (1.015, height), xycoords="axes fraction", color=colour, va="center", fontweight="bold"
        )


def list_names(axes: Axes, names: Sequence[tuple[str, str]], *, top: float = 10) -> None:
    """Names in their colours, one below the other, in the upper right corner.

    Args:
        axes: where.
        names: of each line, its name and its colour.
        top: points of room above the first.
    """
    for row, (name, colour) in enumerate(names):
        axes.annotate(
            name,
            (1, 1),
            (-6, -top - 14 * row),
            "axes fraction",
            textcoords="offset points",
            color=colour,
            ha="right",
            fontweight="bold",
            fontsize=9,
            bbox={"color": PAPER.background, "pad": 1},
        )


def spread(heights: Sequence[float]) -> list[float]:
    """Ascending heights moved apart to at least LABEL_GAP, and down again where they leave the axis."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + LABEL_GAP) if moved else max(height, 0.0))
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - LABEL_GAP
    return moved


def _series(rows: Sequence[Row], theme: Theme) -> list[tuple[list[Row], str]]:
    """The rows of each line, by depth, and its colour; of several rows at one depth the last counts."""
    names = list(dict.fromkeys(series_name(row, rows) for row in rows))
    lines = []
    for number, name in enumerate(names):
        by_depth = {row.n_depth: row for row in rows if series_name(row, rows) == name}
        lines.append(
            ([by_depth[depth] for depth in sorted(by_depth)], theme.series[number % len(theme.series)])
        )
    return lines


def _x(row: Row, rows: Sequence[Row]) -> float:
    return _place(row.n_depth, rows)


def _place(depth: int, rows: Sequence[Row]) -> float:
    """The base-2 logarithm; an empty context, which has none, stands one step left of the smallest."""
    if depth:
        return math.log2(depth)
    smallest = min((row.n_depth for row in rows if row.n_depth), default=2)
    return math.log2(smallest) - 1


def _steps(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... that cover `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    first = max((step for step in steps if step <= low), default=steps[0])
    last = min((step for step in steps if step >= high), default=steps[-1])
    return [step for step in steps if first <= step <= last]


def _short_bytes(count: float) -> str:
    number, unit = format_bytes(round(count)).split()
    return f"{float(number):g} {unit}"
