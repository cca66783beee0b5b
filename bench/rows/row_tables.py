"""The table of results for terminal, Markdown and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sb_edge.bench.rows.row import Row
from sb_edge.util.output import format_bytes, format_duration
from sb_edge.util.table import Column, Table

T = TypeVar("T")

SYNTHETIC_MARK = "*"
BEYOND_MARK = "†"
FITTED_MARK = "‡"
ABSENT = "-"


def format_ttft(row: Row) -> str:
    """Time to the first token, marked if fitted; a dash if the row has none."""
    if row.ttft_ns is None:
        return ABSENT
    return format_duration(row.ttft_ns) + (FITTED_MARK if row.ttft_source == "fitted" else "")


def format_speed(row: Row) -> str:
    """Median and sample standard deviation, tokens per second; a fitted speed has no deviation."""
    digits = 2 if row.median_ts < 100 else 1
    if row.fill == "fitted":
        return f"{row.median_ts:.{digits}f}{FITTED_MARK}"
    return f"{row.median_ts:.{digits}f} ± {row.stddev_ts:.{digits}f}"


def series_name(row: Row, rows: Sequence[Row]) -> str:
    """The row's model, and its processor and settings if `rows` differ in them."""
    types = row.type_k if row.type_k == row.type_v else f"{row.type_k}/{row.type_v}"
    parts: list[tuple[str, set[Any]]] = [
        (row.cpu_info, {other.machine_id for other in rows}),
        (f"{types} KV", {(other.type_k, other.type_v) for other in rows}),
        (flash_attn_name(row), {other.flash_attn for other in rows}),
        (f"ub {row.n_ubatch}", {other.n_ubatch for other in rows}),
        (f"{row.n_threads} threads", {other.n_threads for other in rows}),
    ]
    return ", ".join([row.model, *(text for text, values in parts if len(values) > 1)])


def flash_attn_name(row: Row) -> str:
    """The row's flash attention, for example "fa auto"."""
    return "fa " + {-1: "auto", 0: "off", 1: "on"}.get(row.flash_attn, str(row.flash_attn))


def label_with_marks(row: Row) -> str:
    """llama-bench's label, marked for synthetic context fill and positions beyond the training context."""
    marks = (SYNTHETIC_MARK if row.fill == "synthetic" else "") + (BEYOND_MARK if row.beyond_training else "")
    return row.label + marks


def results_table(rows: Sequence[Row], title: str = "") -> Table:
    """Results of decoding, of prompts, or of both, with notes.

    In a terminal under 80 columns wide for model names of up to 16 characters.
    """
    columns: dict[Column | str, Callable[[Row], str]] = {
        "model": lambda row: series_name(row, rows),
        Column("test", right=False): label_with_marks,
        "t/s": format_speed,
        "KV+state": lambda row: format_bytes(row.context_bytes),
        "RSS": lambda row: _or_absent(row.rss_bytes, format_bytes),
    }
    if any(row.is_prefill for row in rows):
        columns["TTFT"] = format_ttft
    if any(not row.is_prefill for row in rows):
        columns["bytes/t"] = lambda row: _or_absent(row.bytes_per_token, format_bytes)
        columns["roof"] = lambda row: _or_absent(row.roofline_fraction, "{:.0%}".format)
    return Table.of(rows, columns, title=title, notes=_notes(rows))


def _or_absent(value: T | None, text: Callable[[T], str]) -> str:
    return ABSENT if value is None else text(value)


def _notes(rows: Sequence[Row]) -> list[str]:
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
        notes.append(f"{SYNTHETIC_MARK} synthetic context fill: the cache holds copies of one real chunk.")
    fitted = [row for row in rows if "fitted" in (row.fill, row.ttft_source)]
    if fitted:
        worst = max(row.fit_residual or 0 for row in fitted)
        notes.append(
            f"{FITTED_MARK} fitted, not measured: linear in the depth, from chunks measured at several "
            f"depths (largest residual {worst:.0%})."
        )
    if any(row.beyond_training for row in rows):
        notes.append(f"{BEYOND_MARK} beyond the model's training context: speed only.")
    return notes
