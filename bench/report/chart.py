"""A chart of values over context depth; lines are labelled at their right ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from sb_edge.util.output import format_bytes, format_depth
from sb_edge.util.plot import MARKERS, Theme, caption, dress, fix_ticks, label_ends

LOG_RATIO = 12.0
"""Ratio of largest to smallest value above which the axis is logarithmic."""

MAX_TICKS = 10

T = TypeVar("T")


@dataclass(frozen=True)
class ChartPoint:
    """A value at a depth and the ends of its error bar; `hollow` marks synthetic or fitted values."""

    depth: int
    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False

    @property
    def extent(self) -> tuple[float, float]:
        """Lowest and highest value drawn."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return min(low, self.value), max(high, self.value)


@dataclass(frozen=True)
class Line:
    """Named points by depth; `dashed` marks published figures, drawn in the text colour."""

    name: str
    points: Sequence[ChartPoint]
    dashed: bool = False


Scale = Callable[[Axes, float, float], None]
"""Function that sets the vertical axis for values between two bounds."""


@dataclass(frozen=True)
class Chart:
    """Content of a chart.

    Attributes:
        name: short identifier.
        title, detail: text above the chart.
        lines: at least one, each with at least one point.
        scale: sets the vertical axis.
        x_label: label of the horizontal axis.
    """

    name: str
    title: str
    detail: str
    lines: Sequence[Line]
    scale: Scale
    x_label: str = "tokens in the context (logarithmic)"


def draw_chart(axes: Axes, chart: Chart, theme: Theme) -> None:
    """Draw a chart on empty axes."""
    points = [point for line in chart.lines for point in line.points]
    depths = sorted({point.depth for point in points})
    extents = [point.extent for point in points]
    chart.scale(axes, min(low for low, _ in extents), max(high for _, high in extents))
    colours = _colours(chart.lines, theme)
    for line, colour, marker in zip(chart.lines, colours, MARKERS * len(colours), strict=False):
        xs = [_place(point.depth, depths) for point in line.points]
        axes.plot(
            xs, [point.value for point in line.points], color=colour, lw=2, ls="--" if line.dashed else "-"
        )
        for x, point in zip(xs, line.points, strict=True):
            axes.plot([x, x], point.extent, color=colour, lw=1.2)
            face = theme.background if point.hollow else colour
            axes.plot(x, point.value, marker=marker, ms=7, color=colour, mfc=face, mew=1.6, ls="none")
    _mark_depths(axes, depths, chart.x_label, theme)
    ends = [(line.points[-1].value, line.name) for line in chart.lines]
    label_ends(axes, [(*end, colour) for end, colour in zip(ends, colours, strict=True)])
    caption(axes, theme, chart.title, chart.detail)


def linear_or_log(axes: Axes, low: float, high: float) -> None:
    """Linear axis from zero; logarithmic if values differ by more than `LOG_RATIO`."""
    if low <= 0 or high <= LOG_RATIO * low:
        axes.set_ylim(0, 1.12 * high)
        return
    axes.set_yscale("log")
    fix_ticks(axes.yaxis, _steps(low, high))
    axes.set_ylim(low / 1.3, high * 1.3)


def percentages(axes: Axes, low: float, high: float) -> None:
    """Shares from 0 to 1 or more, as percentages."""
    axes.set_ylim(0, max(1.05, 1.12 * high))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def durations(axes: Axes, low: float, high: float) -> None:
    """Logarithmic axis of nanoseconds with time units."""
    linear_or_log(axes, min(low, high / (2 * LOG_RATIO)), high)
    bottom, top = low / 1.3, high * 1.3
    if not any(bottom <= step <= top for step in _DURATIONS):  # for example between 2 and 5 s: include a tick
        bottom = min(bottom, max((step for step in _DURATIONS if step < bottom), default=bottom))
        top = max(top, _DURATIONS[0])
    axes.set_ylim(bottom, top)
    steps = [step for step in _DURATIONS if bottom <= step <= top]
    axes.yaxis.set_major_locator(FixedLocator(_thinned(steps)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_duration(value)))


def sizes(axes: Axes, low: float, high: float) -> None:
    """Logarithmic axis of bytes in powers of two."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    step = max(1, (last - first) // 6)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(FixedLocator([2.0**power for power in range(first, last + step, step)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_bytes(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(2.0 ** (first - 0.5), 2.0 ** (last + 0.5))


_DURATIONS = [
    *(factor * 1e6 for factor in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    *(factor * unit for unit in (1e9, 60e9) for factor in (1, 2, 5, 10, 20, 30)),
    *(factor * 3600e9 for factor in (1, 2, 5, 10, 20, 50, 100)),
]
"""Tick positions from 1 ms to 100 h, nanoseconds."""


def _colours(lines: Sequence[Line], theme: Theme) -> list[str]:
    """A colour for each line; dashed lines have the text colour."""
    own = [line.name for line in lines if not line.dashed]
    return [
        theme.ink if line.dashed else theme.series[own.index(line.name) % len(theme.series)] for line in lines
    ]


def _mark_depths(axes: Axes, depths: Sequence[int], x_label: str, theme: Theme) -> None:
    places = [_place(depth, depths) for depth in depths]
    shown = _thinned(depths)
    axes.xaxis.set_major_locator(FixedLocator([_place(depth, depths) for depth in shown]))
    axes.xaxis.set_major_formatter(FixedFormatter([format_depth(depth) for depth in shown]))
    margin = 0.06 * max(places[-1] - places[0], 1)
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    dress(axes, theme, x_label)


def _place(depth: int, depths: Sequence[int]) -> float:
    """Base-2 logarithm; depth 0 is drawn one step left of the smallest positive depth."""
    if depth:
        return math.log2(depth)
    return math.log2(min((other for other in depths if other), default=2)) - 1


def _steps(low: float, high: float) -> list[float]:
    """Numbers 1, 2, 5, 10, ... from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    first = max((step for step in steps if step <= low), default=steps[0])
    last = min((step for step in steps if step >= high), default=steps[-1])
    return [step for step in steps if first <= step <= last]


def _thinned(values: Sequence[T]) -> list[T]:
    """At most `MAX_TICKS` evenly spaced values, including the last."""
    step = -(-len(values) // MAX_TICKS)
    return list(values[::-1][::step][::-1])


def _short_bytes(count: float) -> str:
    number, unit = format_bytes(round(count)).split()
    return f"{float(number):g} {unit}"


def _short_duration(ns: float) -> str:
    for size, unit in ((3600e9, "h"), (60e9, "min"), (1e9, "s")):
        if ns >= size:
            return f"{ns / size:g} {unit}"
    return f"{ns / 1e6:g} ms"
