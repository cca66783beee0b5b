"""Common parts of all plots: colours, style, files, inline SVG, labels without overlap."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sb_edge.util.errors import OutputError
from sb_edge.util.files import atomic_output, require_folder

LABEL_GAP = 0.075
"""Minimum vertical distance of two line labels, as a share of the axis."""

MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Theme:
    """Colours of text and axes, grid lines, the inside of hollow markers, and the series."""

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
"""Colours for image files: dark on white."""

PAGE = Theme(
    ink="#010101",
    grid="#020202",
    background="#040404",
    series=("#030301", "#030302", "#030303", "#030304", "#030305", "#030306"),
)
"""Placeholders that `inline_svg` replaces with CSS variables for light and dark mode."""

DASHED: Any = {"color": PAPER.ink, "lw": 0.9, "ls": (0, (4, 3))}
"""Style of a line that marks a value."""

STYLE: Any = {  # the type of matplotlib's settings depends on its version
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "sb-edge",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


FORMATS = (".png", ".svg")
"""Formats of plots that are written into a folder."""

Drawing = tuple[tuple[float, float], Callable[[Figure], None]]
"""Width and height in inches, and a function that draws on the empty figure."""


def write_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Write a figure in the common style; the extension selects PNG, SVG or PDF.

    Args:
        path: the file.
        size: width and height in inches.
        draw: draws on the empty figure.

    Raises:
        OutputError: another extension, or the file cannot be written.
    """
    kind = require_image_name(path)
    with matplotlib.rc_context(STYLE), atomic_output(Path(path)) as partial:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(partial, format=kind, dpi=150, facecolor=PAPER.background)


def write_figures(folder: Path, drawings: Mapping[str, Drawing]) -> list[Path]:
    """Write NAME.png and NAME.svg for each drawing into a folder, which is created if absent.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    require_folder(folder)
    files = []
    for name, (size, draw) in drawings.items():
        for ending in FORMATS:
            files.append(folder / f"{name}{ending}")
            write_figure(files[-1], size, draw)
    return files


def require_image_name(path: Path) -> str:
    """Return the image format of a file extension: png, svg or pdf.

    Raises:
        OutputError: another extension.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise OutputError("unknown kind of plot", path=path, found=f".{kind}", expected=".png, .svg or .pdf")
    return kind


def inline_svg(name: str, draw: Callable[[Axes], None]) -> str:
    """Draw an SVG element for a page that defines --ink, --grid, --card and --series-1 to -6.

    Args:
        name: makes the plot's identifiers unique on the page.
        draw: draws on the axes in the colours of PAGE.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(8.4, 4.0), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Without a size in points the plot scales with the page; the viewBox preserves its aspect ratio.
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for placeholder, variable in ((PAGE.ink, "ink"), (PAGE.grid, "grid"), (PAGE.background, "card")):
        svg = svg.replace(placeholder, f"var(--{variable})")
    for number, colour in enumerate(PAGE.series, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg


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
    """Add a bold title at the left and a line of detail below it."""
    axes.set_title(title, loc="left", color=theme.ink, fontsize=12, fontweight="bold", pad=24)
    axes.annotate(
        detail, (0, 1), (0, 8), "axes fraction", textcoords="offset points", color=theme.ink, fontsize=9
    )


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Label lines at their right ends, in their colours, without overlap.

    Args:
        axes: axes with final vertical limits.
        ends: last value, name and colour of each line.
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
    """List names in their colours in the upper right corner.

    Args:
        axes: axes of the plot.
        names: name and colour of each line.
        top: space above the first name, points.
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
    """Move ascending heights apart by at least LABEL_GAP, within the axis."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + LABEL_GAP) if moved else max(height, 0.0))
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - LABEL_GAP
    return moved
