"""The table of results, for the terminal, Markdown and the report: one description of its columns for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sb_edge.bench.rows.row import Row
from sb_edge.util.output import format_bytes, format_duration

T = TypeVar("T")

SYNTHETIC_MARK = "*"
BEYOND_MARK = "†"
FITTED_MARK = "‡"
ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """A column: its heading, its alignment and the text of a row in it."""

    heading: str
    text: Callable[[Row], str]
    right: bool = True


def format_ttft(row: Row) -> str:
    """The time to the first token, marked where it is fitted; a dash where there is none."""
    if row.ttft_ns is None:
        return ABSENT
    return format_duration(row.ttft_ns) + (FITTED_MARK if row.ttft_source == "fitted" else "")


def format_speed(row: Row) -> str:
    """Median and sample standard deviation, tokens per second; without the latter where it is fitted."""
    digits = 2 if row.median_ts < 100 else 1
    if row.fill == "fitted":
        return f"{row.median_ts:.{digits}f}{FITTED_MARK}"
    return f"{row.median_ts:.{digits}f} ± {row.stddev_ts:.{digits}f}"


def series_name(row: Row, rows: Sequence[Row]) -> str:
    """The row's model, with what the rows differ in: cache types, flash attention, ubatch, threads."""
    types = row.type_k if row.type_k == row.type_v else f"{row.type_k}/{row.type_v}"
    flash_attn = {-1: "auto", 0: "off", 1: "on"}.get(row.flash_attn, str(row.flash_attn))
    parts: list[tuple[str, set[Any]]] = [
        (f"{types} KV", {(other.type_k, other.type_v) for other in rows}),
        (f"fa {flash_attn}", {other.flash_attn for other in rows}),
        (f"ub {row.n_ubatch}", {other.n_ubatch for other in rows}),
        (f"{row.n_threads} threads", {other.n_threads for other in rows}),
    ]
    return ", ".join([row.model, *(text for text, values in parts if len(values) > 1)])


def label_with_marks(row: Row) -> str:
    """llama-bench's label, marked where the fill is synthetic or the positions lie beyond the model's."""
    marks = (SYNTHETIC_MARK if row.fill == "synthetic" else "") + (BEYOND_MARK if row.beyond_training else "")
    return row.label + marks


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns shown for these rows: those of decoding, of prompts, or of both."""
    prompts = [Column("TTFT", format_ttft)] if any(row.is_prefill for row in rows) else []
    decoding = [
        Column("bytes/t", lambda row: _or_absent(row.bytes_per_token, format_bytes)),
        Column("roof", lambda row: _or_absent(row.roofline_fraction, "{:.0%}".format)),
    ]
    return [
        Column("model", lambda row: series_name(row, rows), right=False),
        Column("test", label_with_marks, right=False),
        Column("t/s", format_speed),
        Column("KV+state", lambda row: format_bytes(row.context_bytes)),
        Column("RSS", lambda row: _or_absent(row.rss_bytes, format_bytes)),
        *prompts,
        *(decoding if any(not row.is_prefill for row in rows) else []),
    ]


def _or_absent(value: T | None, text: Callable[[T], str]) -> str:
    return ABSENT if value is None else text(value)


def footnotes(rows: Sequence[Row]) -> list[str]:
    """What the reader needs beside the table, one sentence a line."""
    if not rows:
        return []
    low, high = (f"{pick(row.read_bandwidth for row in rows) / 1e9:.1f}" for pick in (min, max))
    spread = low if low == high else f"{low} to {high}"
    notes = ["t/s: median and standard deviation over the repetitions."]
    if any(not row.is_prefill for row in rows):
        notes.append(f"roof: bytes/t × t/s over the read bandwidth measured in this run ({spread} GB/s).")
    if any(row.is_prefill for row in rows):
        notes.append("TTFT: time to the first token of a prompt as long as the depth (d).")
    if any(row.fill == "synthetic" for row in rows):
        notes.append(f"{SYNTHETIC_MARK} synthetic fill: the cache holds copies of one real chunk.")
    fitted = [row for row in rows if "fitted" in (row.fill, row.ttft_source)]
    if fitted:
        worst = max(row.fit_residual or 0 for row in fitted)
        notes.append(
            f"{FITTED_MARK} fitted, not measured: from the cost of chunks at several depths, linear in "
            f"the depth (largest residual {worst:.0%})."
        )
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
