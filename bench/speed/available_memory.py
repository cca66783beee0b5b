"""Compare the memory needed by benchmark cases with the available memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sb_edge.bench.speed.plan import Case
from sb_edge.memory.check import (
    FLOAT_TYPES,
    SMALLER_OPTIONS,
    SMALLER_TYPES,
    Alternative,
    Room,
    refuse_shortage,
)
from sb_edge.memory.forecast import EngineSettings, MemoryForecast, forecast

COPIES = 2
"""Copies of a context held at once while it is saved or restored."""


def needed(case: Case) -> MemoryForecast:
    """Peak memory of the case, including the benchmark's copies of the context."""
    expected = context_forecast(case)
    return replace(expected, extra=_snapshot_bytes(case, expected) + _shift_bytes(case))


def require_memory(cases: Sequence[Case], room: Room | None = None) -> None:
    """Check before the run that each case fits in memory by itself.

    Args:
        cases: cases to be measured.
        room: available memory; None: `Room.now()`.

    Raises:
        OutOfMemoryForecast: names needed and available memory, and settings that fit.
    """
    room = room or Room.now()
    for case in cases:
        if case.fill != "fitted":
            refuse_shortage(
                needed(case),
                room,
                "",
                path=case.subject.path,
                item=f"{case.label}, {case.type_k}/{case.type_v} cache",
                alternatives=(_smaller_types(case), _shallower(case)),
            )


def groups_that_fit(
    cases: Sequence[Case], *, together: bool = True, room: Room | None = None
) -> Iterator[list[Case]]:
    """Split cases of one depth into groups that fit in memory together; groups are measured interleaved.

    Args:
        cases: in the order of the plan; each fits by itself.
        together: False: one case per group.
        room: available memory; None: `Room.now()` before each group.
    """
    waiting = list(cases)
    while waiting:
        free = (room or Room.now()).physical
        size = needed(waiting[0]).total
        count = 1
        while together and count < len(waiting):
            size += needed(waiting[count]).total
            if size > free:
                break
            count += 1
        yield waiting[:count]
        waiting = waiting[count:]


def context_forecast(case: Case) -> MemoryForecast:
    """Memory of the case's weights, context and buffers."""
    return forecast(
        case.subject.header,
        case.n_ctx,
        EngineSettings(
            case.type_k, case.type_v, n_ubatch=case.settings.n_ubatch, flash_attn=case.settings.flash_attn
        ),
    )


def _snapshot_bytes(case: Case, expected: MemoryForecast) -> int:
    """Size of the context's copies: kept for the next depth, or restored for each repetition.

    Python holds one copy, and a second one while the engine writes or reads it.
    """
    needs_copy = case.is_continued or not case.subject.can_roll_back
    return COPIES * (expected.kv + expected.state) if needs_copy and case.n_depth else 0


def _shift_bytes(case: Case) -> int:
    """Shifting quantized keys makes the engine convert one layer of them to float32."""
    if case.fill == "real" or case.type_k in FLOAT_TYPES:
        return 0
    unpacked = context_forecast(replace(case, type_k="f32", type_v="f32"))
    return unpacked.kv // case.subject.header.integer("block_count")


def _smaller_types(case: Case) -> Iterator[Alternative]:
    if {case.type_k, case.type_v} <= FLOAT_TYPES:
        yield SMALLER_OPTIONS, needed(replace(case, **SMALLER_TYPES))


def _shallower(case: Case) -> Iterator[Alternative]:
    depth = case.n_depth
    while depth:
        depth //= 2
        yield f"--depths up to {depth}", needed(replace(case, n_depth=depth))
