"""Rows of two sides, matched by what was measured: which is faster, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sb_edge.bench.report.row_tables import ABSENT, FITTED_MARK, SYNTHETIC_MARK
from sb_edge.bench.rows.ratios import CONFIDENCE, Ratio, speed_ratio
from sb_edge.bench.rows.row import Row
from sb_edge.util.errors import SbEdgeError

UNPAIRED_MARK = "^"


@dataclass(frozen=True)
class SpeedComparison:
    """The same work done by two sides.

    Attributes:
        ours, theirs: the rows, A and B.
        speed: A's speed over B's.
    """

    ours: Row
    theirs: Row
    speed: Ratio

    @property
    def ttft(self) -> float | None:
        """How many times as soon A's first token comes; None where a side has no such time."""
        if not self.ours.ttft_ns or not self.theirs.ttft_ns:
            return None
        return self.theirs.ttft_ns / self.ours.ttft_ns

    @property
    def ttft_is_fitted(self) -> bool:
        """Whether a time behind `ttft` was fitted and not measured."""
        return "fitted" in (self.ours.ttft_source, self.theirs.ttft_source)

    @property
    def speed_is_fitted(self) -> bool:
        """Whether a speed was fitted and not measured."""
        return "fitted" in (self.ours.fill, self.theirs.fill)

    def to_json(self) -> dict[str, Any]:
        """What docs/benchmarks.md describes."""
        return {
            "label": self.ours.label,
            "n_prompt": self.ours.n_prompt,
            "n_gen": self.ours.n_gen,
            "n_depth": self.ours.n_depth,
            "a": _side(self.ours),
            "b": _side(self.theirs),
            "ratio": self.speed.value,
            "ratio_low": self.speed.low,
            "ratio_high": self.speed.high,
            "confidence": CONFIDENCE,
            "paired": self.speed.paired,
            "fitted": self.speed_is_fitted,
            "ttft_ratio": self.ttft,
            "ttft_fitted": self.ttft_is_fitted,
        }


class _Work(NamedTuple):
    """What two rows must have in common to be compared."""

    label: str
    n_threads: int
    model: str | None


class _Setting(NamedTuple):
    """What rows of the same work may differ in."""

    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: int

    @property
    def cache_types(self) -> tuple[str, str]:
        return self.type_k, self.type_v


def select_model(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one model.

    Raises:
        SbEdgeError: there are none.
    """
    selected = [row for row in rows if row.model == name]
    if not selected:
        names = ", ".join(dict.fromkeys(row.model for row in rows))
        raise SbEdgeError("there are no rows of this model", found=name, expected=names or "none at all")
    return selected


def compare_rows(ours: Sequence[Row], theirs: Sequence[Row]) -> list[SpeedComparison]:
    """Compare every row of B with the row of A for the same label, threads and settings.

    Where each side has a single model, those are compared; otherwise models are matched by name. A row of B
    whose settings (cache types, flash attention, ubatch) A does not have is compared with A's only row for
    the label and these cache types, or for the label, if there is only one: a model may be compared with
    several settings of another. Of several rows of one side for the same thing the last counts.

    Raises:
        SbEdgeError: nothing matches.
    """
    named = len({row.model for row in ours}) > 1 or len({row.model for row in theirs}) > 1
    table: dict[_Work, dict[_Setting, Row]] = {}
    for row in ours:
        table.setdefault(_work(row, named), {})[_setting(row)] = row
    counterparts = {(_work(row, named), _setting(row)): row for row in theirs}
    found = []
    for (work, setting), row in counterparts.items():
        candidates = table.get(work, {})
        same_types = [row for key, row in candidates.items() if key.cache_types == setting.cache_types]
        match = candidates.get(setting) or _only(same_types) or _only([*candidates.values()])
        if match is not None:
            found.append(SpeedComparison(match, row, row_ratio(match, row)))
    if not found:
        raise SbEdgeError(
            "no row of A has a counterpart in B",
            hint="compare measurements of the same label and number of threads",
        )
    return sorted(found, key=lambda one: (one.ours.is_prefill, one.ours.n_depth))


def _only(rows: Sequence[Row]) -> Row | None:
    return rows[0] if len(rows) == 1 else None


def first_against_others(rows: Sequence[Row]) -> list[SpeedComparison]:
    """The first model among the rows against each of the others; nothing where there is one model alone."""
    names = list(dict.fromkeys(row.model for row in rows))
    first = [row for row in rows if row.model == names[0]] if names else []
    found = []
    for name in names[1:]:
        try:
            found += compare_rows(first, select_model(rows, name))
        except SbEdgeError:
            continue  # a time budget may have left a model without any row in common
    return sorted(found, key=lambda one: (one.ours.is_prefill, one.ours.n_depth))


def row_ratio(ours: Row, theirs: Row) -> Ratio:
    """A's speed over B's, by pairs where both were measured in turns."""
    if "fitted" in (ours.fill, theirs.fill):
        return Ratio(ours.median_ts / theirs.median_ts, None, None, paired=False)
    paired = ours.turns is not None and ours.turns == theirs.turns
    return speed_ratio(ours.samples_ts, theirs.samples_ts, paired=paired)


def comparison_table(comparisons: Sequence[SpeedComparison]) -> RenderableType:
    """For a terminal of 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("test", no_wrap=True)
    table.add_column("A / B", overflow="fold")
    headings = ["A t/s", "B t/s", "ratio", "95 % interval"]
    shows_ttft = any(one.ttft is not None for one in comparisons)
    for heading in [*headings, "TTFT"] if shows_ttft else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in comparisons:
        table.add_row(*(Text(cell) for cell in _cells(one)[: 7 if shows_ttft else 6]))
    return Group(table, *(Text(note, style="dim") for note in comparison_notes(comparisons)))


def comparison_notes(comparisons: Sequence[SpeedComparison]) -> list[str]:
    """What the reader needs beside the table, one sentence a line."""
    notes = []
    if any(one.speed.paired for one in comparisons):
        notes.append("ratio: A's speed over B's, the median over neighbours measured in turns.")
    if any(_is_of_medians(one) for one in comparisons):
        notes.append(f"{UNPAIRED_MARK} ratio of medians: not measured in turns.")
    if any(one.ttft is not None for one in comparisons):
        notes.append("TTFT: how many times as soon A's first token comes.")
    if any(one.speed_is_fitted or one.ttft_is_fitted for one in comparisons):
        notes.append(f"{FITTED_MARK} fitted, not measured.")
    if any("synthetic" in (one.ours.fill, one.theirs.fill) for one in comparisons):
        notes.append(f"{SYNTHETIC_MARK} a side's context was filled synthetically.")
    return notes


def _is_of_medians(one: SpeedComparison) -> bool:
    return not one.speed.paired and not one.speed_is_fitted


def _cells(one: SpeedComparison) -> list[str]:
    synthetic = SYNTHETIC_MARK if "synthetic" in (one.ours.fill, one.theirs.fill) else ""
    mark = FITTED_MARK if one.speed_is_fitted else UNPAIRED_MARK if _is_of_medians(one) else ""
    interval = (
        ABSENT if one.speed.low is None else f"{_short(one.speed.low)} to {_short(one.speed.high or 0)}"
    )
    ttft = ABSENT if one.ttft is None else _short(one.ttft) + (FITTED_MARK if one.ttft_is_fitted else "")
    return [
        one.ours.label + synthetic,
        f"{_side_name(one.ours, one.theirs)} / {_side_name(one.theirs, one.ours)}",
        f"{one.ours.median_ts:.4g}",
        f"{one.theirs.median_ts:.4g}",
        _short(one.speed.value) + mark,
        interval,
        ttft,
    ]


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.2f}"


def _side_name(row: Row, other: Row) -> str:
    """The model, with what its setting differs in."""
    name = row.model
    if (row.type_k, row.type_v) != (other.type_k, other.type_v):
        name += f" {row.type_k}" if row.type_k == row.type_v else f" {row.type_k}/{row.type_v}"
    if row.flash_attn != other.flash_attn:
        name += f" fa {row.flash_attn}"
    return name


def _side(row: Row) -> dict[str, Any]:
    names = (
        "model", "type_k", "type_v", "flash_attn", "n_ubatch", "n_threads", "median_ts", "fill", "ttft_ns",
        "ttft_source", "kv_bytes", "state_bytes", "model_sha256", "machine_id", "engine_key",
    )  # fmt: skip
    return {name: getattr(row, name) for name in names}


def _work(row: Row, named: bool) -> _Work:
    return _Work(row.label, row.n_threads, row.model if named else None)


def _setting(row: Row) -> _Setting:
    return _Setting(row.n_ubatch, row.type_k, row.type_v, row.flash_attn)
