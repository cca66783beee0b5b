"""Match rows of two sides and compare their speeds, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sb_edge.bench.rows.ratios import CONFIDENCE, Ratio, speed_ratio
from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.row_tables import ABSENT, FITTED_MARK, SYNTHETIC_MARK, flash_attn_name
from sb_edge.util.errors import SbEdgeError
from sb_edge.util.output import json_fields
from sb_edge.util.table import Column, Table

UNPAIRED_MARK = "^"


@dataclass(frozen=True)
class SpeedComparison:
    """The same work measured on two sides, A and B.

    Attributes:
        ours, theirs: rows of A and of B.
        speed: A's speed over B's.
    """

    ours: Row
    theirs: Row
    speed: Ratio

    @property
    def ttft(self) -> float | None:
        """B's time to the first token over A's; None if a row has none."""
        if not self.ours.ttft_ns or not self.theirs.ttft_ns:
            return None
        return self.theirs.ttft_ns / self.ours.ttft_ns

    @property
    def ttft_is_fitted(self) -> bool:
        """Whether a time in `ttft` was fitted, not measured."""
        return "fitted" in (self.ours.ttft_source, self.theirs.ttft_source)

    @property
    def speed_is_fitted(self) -> bool:
        """Whether a speed was fitted, not measured."""
        return "fitted" in (self.ours.fill, self.theirs.fill)

    def to_json(self) -> dict[str, Any]:
        """The fields that docs/benchmarks.md describes."""
        return {
            **json_fields(self.ours, "label", "n_prompt", "n_gen", "n_depth"),
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


def select_model(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one model.

    Raises:
        SbEdgeError: there are none.
    """
    selected = [row for row in rows if row.model == name]
    if not selected:
        names = ", ".join(dict.fromkeys(row.model for row in rows))
        raise SbEdgeError("no rows of this model", found=name, expected=names or "any rows")
    return selected


def compare_rows(ours: Sequence[Row], theirs: Sequence[Row]) -> list[SpeedComparison]:
    """Compare every row of B with the row of A that has the same label, threads and settings.

    Models are matched by name, unless each side has a single model. If no row of A has the settings of a row
    of B (cache types, flash attention, ubatch), A's only row with that label and these cache types is used,
    else A's only row with that label: one setting of A can be compared with several of B. If a side has
    several rows with the same label and settings, the last one is used.

    Raises:
        SbEdgeError: nothing matches.
    """
    named = len({row.model for row in ours}) > 1 or len({row.model for row in theirs}) > 1
    table: dict[tuple[object, ...], dict[tuple[object, ...], Row]] = {}
    for row in ours:
        table.setdefault(_work(row, named), {})[_setting(row)] = row
    found = []
    for row in {(_work(row, named), _setting(row)): row for row in theirs}.values():
        candidates = table.get(_work(row, named), {})
        same_types = [one for one in candidates.values() if _cache_types(one) == _cache_types(row)]
        match = candidates.get(_setting(row)) or _only(same_types) or _only([*candidates.values()])
        if match is not None:
            found.append(SpeedComparison(match, row, row_ratio(match, row)))
    if not found:
        raise SbEdgeError(
            "no row of A has a counterpart in B",
            hint="compare measurements with the same label and number of threads",
        )
    return sorted(found, key=lambda one: (one.ours.is_prefill, one.ours.n_depth))


def _only(rows: Sequence[Row]) -> Row | None:
    return rows[0] if len(rows) == 1 else None


def first_against_others(rows: Sequence[Row]) -> list[SpeedComparison]:
    """Compare the first model among the rows with each other model; empty for a single model."""
    names = list(dict.fromkeys(row.model for row in rows))
    first = [row for row in rows if row.model == names[0]] if names else []
    found = []
    for name in names[1:]:
        try:
            found += compare_rows(first, select_model(rows, name))
        except SbEdgeError:
            continue  # a time budget can leave two models without a common row
    return sorted(found, key=lambda one: (one.ours.is_prefill, one.ours.n_depth))


def row_ratio(ours: Row, theirs: Row) -> Ratio:
    """A's speed over B's, from pairs if the rows were interleaved."""
    if "fitted" in (ours.fill, theirs.fill):
        return Ratio(ours.median_ts / theirs.median_ts, None, None, paired=False)
    paired = ours.turns is not None and ours.turns == theirs.turns
    return speed_ratio(ours.samples_ts, theirs.samples_ts, paired=paired)


def comparison_table(comparisons: Sequence[SpeedComparison]) -> Table:
    """One row per comparison with notes; fits a terminal of 80 columns."""
    columns: dict[Column | str, Callable[[SpeedComparison], str]] = {
        Column("test", right=False): _label,
        Column("A / B", right=False, wrap=True): lambda one: (
            f"{_side_name(one.ours, one.theirs)} / {_side_name(one.theirs, one.ours)}"
        ),
        "A t/s": lambda one: f"{one.ours.median_ts:.4g}",
        "B t/s": lambda one: f"{one.theirs.median_ts:.4g}",
        "ratio": _marked_ratio,
        "95 % interval": _interval,
    }
    if any(one.ttft is not None for one in comparisons):
        columns["TTFT"] = _ttft
    return Table.of(comparisons, columns, notes=_notes(comparisons))


def _notes(comparisons: Sequence[SpeedComparison]) -> list[str]:
    notes = []
    if any(one.speed.paired for one in comparisons):
        notes.append("ratio: A's speed over B's, median over interleaved pairs.")
    if any(_is_of_medians(one) for one in comparisons):
        notes.append(f"{UNPAIRED_MARK} ratio of medians: not interleaved.")
    if any(one.ttft is not None for one in comparisons):
        notes.append("TTFT: B's time to the first token over A's.")
    if any(one.speed_is_fitted or one.ttft_is_fitted for one in comparisons):
        notes.append(f"{FITTED_MARK} fitted, not measured.")
    if any(_is_synthetic(one) for one in comparisons):
        notes.append(f"{SYNTHETIC_MARK} synthetic context fill on at least one side.")
    return notes


def _is_synthetic(one: SpeedComparison) -> bool:
    return "synthetic" in (one.ours.fill, one.theirs.fill)


def _is_of_medians(one: SpeedComparison) -> bool:
    return not one.speed.paired and not one.speed_is_fitted


def _label(one: SpeedComparison) -> str:
    return one.ours.label + (SYNTHETIC_MARK if _is_synthetic(one) else "")


def _marked_ratio(one: SpeedComparison) -> str:
    mark = FITTED_MARK if one.speed_is_fitted else UNPAIRED_MARK if _is_of_medians(one) else ""
    return _short(one.speed.value) + mark


def _interval(one: SpeedComparison) -> str:
    low, high = one.speed.low, one.speed.high
    return ABSENT if low is None or high is None else f"{_short(low)} to {_short(high)}"


def _ttft(one: SpeedComparison) -> str:
    return ABSENT if one.ttft is None else _short(one.ttft) + (FITTED_MARK if one.ttft_is_fitted else "")


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.2f}"


def _side_name(row: Row, other: Row) -> str:
    """The model, with the settings in which it differs from the other side."""
    name = row.model
    if _cache_types(row) != _cache_types(other):
        name += f" {row.type_k}" if row.type_k == row.type_v else f" {row.type_k}/{row.type_v}"
    if row.flash_attn != other.flash_attn:
        name += f" {flash_attn_name(row)}"
    return name


def _side(row: Row) -> dict[str, Any]:
    names = (
        "model", "type_k", "type_v", "flash_attn", "n_ubatch", "n_threads", "median_ts", "fill", "ttft_ns",
        "ttft_source", "kv_bytes", "state_bytes", "model_sha256", "machine_id", "engine_key",
    )  # fmt: skip
    return json_fields(row, *names)


def _work(row: Row, named: bool) -> tuple[object, ...]:
    """Properties that two compared rows share."""
    return row.label, row.n_threads, row.model if named else None


def _setting(row: Row) -> tuple[object, ...]:
    """Settings in which two compared rows may differ."""
    return row.n_ubatch, row.flash_attn, *_cache_types(row)


def _cache_types(row: Row) -> tuple[str, str]:
    return row.type_k, row.type_v
