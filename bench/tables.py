"""The table of results, for the terminal, Markdown and the report: one description of its columns for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sb_edge.bench.results import Row
from sb_edge.output import format_bytes

SYNTHETIC_MARK = "*"
BEYOND_MARK = "†"


@dataclass(frozen=True)
class Column:
    """A column: its heading, its alignment and the text of a row in it."""

    heading: str
    text: Callable[[Row], str]
    right: bool = True


def format_depth(depth: int) -> str:
    """A depth as people say it.

    >>> [format_depth(depth) for depth in (0, 100, 4096, 262144)]
    ['0', '100', '4k', '256k']
    """
    return f"{depth // 1024}k" if depth and depth % 1024 == 0 else str(depth)


def format_speed(row: Row) -> str:
    """Median and sample standard deviation, tokens per second."""
    digits = 2 if row.median_ts < 100 else 1
    return f"{row.median_ts:.{digits}f} ± {row.stddev_ts:.{digits}f}"


def series_name(row: Row, rows: Sequence[Row]) -> str:
    """The row's model, with the cache types where the rows differ in them."""
    if len({(other.type_k, other.type_v) for other in rows}) == 1:
        return row.model
    types = row.type_k if row.type_k == row.type_v else f"{row.type_k}/{row.type_v}"
    return f"{row.model}, {types} KV"


def label_with_marks(row: Row) -> str:
    """llama-bench's label, marked where the fill is synthetic or the positions lie beyond the model's."""
    marks = (SYNTHETIC_MARK if row.fill == "synthetic" else "") + (BEYOND_MARK if row.beyond_training else "")
    return row.label + marks


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns shown for these rows."""
    return [
        Column("model", lambda row: series_name(row, rows), right=False),
        Column("test", label_with_marks, right=False),
        Column("t/s", format_speed),
        Column("KV+state", lambda row: format_bytes(row.context_bytes)),
        Column("RSS", lambda row: format_bytes(row.rss_bytes)),
        Column("bytes/t", lambda row: format_bytes(row.bytes_per_token)),
        Column("roof", lambda row: f"{row.roofline_fraction:.0%}"),
    ]


def footnotes(rows: Sequence[Row]) -> list[str]:
    """What the reader needs beside the table, one sentence a line."""
    if not rows:
        return []
    low, high = (f"{pick(row.read_bandwidth for row in rows) / 1e9:.1f}" for pick in (min, max))
    spread = low if low == high else f"{low} to {high}"
    notes = [
        "t/s: median and standard deviation over the repetitions; "
        f"roof: bytes/t × t/s over the read bandwidth measured in this run ({spread} GB/s)."
    ]
    if any(row.fill == "synthetic" for row in rows):
        notes.append(f"{SYNTHETIC_MARK} synthetic fill: the cache holds copies of one real chunk.")
    if any(row.beyond_training for row in rows):
        notes.append(f"{BEYOND_MARK} beyond the context that the model was made for: speed only.")
    return notes


def rich_table(rows: Sequence[Row]) -> RenderableType:
    """The table for a terminal with its notes; under 80 columns wide with model names of 16 characters."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = columns(rows)
    for column in shown:
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=column.heading != "model",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(column.text(row)) for column in shown))
    return Group(table, *(Text(note, style="dim") for note in footnotes(rows)))


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table as GitHub-flavoured Markdown, notes below it."""
    shown = columns(rows)
    lines = [
        "| " + " | ".join(column.heading for column in shown) + " |",
        "| " + " | ".join("---:" if column.right else ":---" for column in shown) + " |",
    ]
    lines += ["| " + " | ".join(_escape(column.text(row)) for column in shown) + " |" for row in rows]
    return "\n".join([*lines, "", *(_escape(note) + "  " for note in footnotes(rows))]).rstrip() + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
