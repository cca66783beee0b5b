"""Whether the machine's memory is enough for what a benchmark will measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import psutil

from sb_edge.bench.plan import FLOAT_TYPES, Case
from sb_edge.errors import OutOfMemoryForecast
from sb_edge.memory import MemoryForecast, forecast
from sb_edge.output import format_bytes


def needed_bytes(case: Case) -> int:
    """Memory that the case takes at its peak, the method's own copies included."""
    expected = context_forecast(case)
    return expected.total + _snapshot_bytes(case, expected) + _shift_bytes(case)


def require_memory(cases: Sequence[Case], available: int | None = None) -> None:
    """Refuse before anything starts if one of the cases will not fit; each must fit by itself.

    Args:
        cases: those still to be measured.
        available: bytes; None: what the system says it can give without swapping.

    Raises:
        OutOfMemoryForecast: what is needed, what there is, and what would fit instead.
    """
    if available is None:
        available = psutil.virtual_memory().available
    for case in cases:
        needed = needed_bytes(case)
        if case.fill != "fitted" and needed > available:
            raise OutOfMemoryForecast(
                f"will not fit in memory: it needs {format_bytes(needed)}",
                path=case.subject.path,
                item=f"{case.label}, {case.type_k}/{case.type_v} cache",
                found=f"{format_bytes(available)} available",
                hint=_smaller_alternative(case, available),
            )


def groups_that_fit(
    cases: Sequence[Case], *, together: bool = True, available: int | None = None
) -> Iterator[list[Case]]:
    """Cases of one depth in groups that memory holds at once, in their order; each is measured in turns.

    Args:
        cases: in the order of the plan; each fits by itself.
        together: False: every case by itself.
        available: bytes; None: what the system says before each group.
    """
    waiting = list(cases)
    while waiting:
        free = psutil.virtual_memory().available if available is None else available
        size = needed_bytes(waiting[0])
        count = 1
        while together and count < len(waiting):
            size += needed_bytes(waiting[count])
            if size > free:
                break
            count += 1
        yield waiting[:count]
        waiting = waiting[count:]


def context_forecast(case: Case) -> MemoryForecast:
    """The memory of the case's weights, context and buffers."""
    return forecast(
        case.subject.header,
        case.n_ctx,
        type_k=case.type_k,
        type_v=case.type_v,
        n_ubatch=case.settings.n_ubatch,
        flash_attn=_uses_flash_attention(case),
    )


def _uses_flash_attention(case: Case) -> bool:
    """The session turns "auto" into "off" for a float32 cache, which flash attention would round."""
    choice = case.settings.flash_attn
    return choice == "on" or (choice == "auto" and "f32" not in (case.type_k, case.type_v))


def _snapshot_bytes(case: Case, expected: MemoryForecast) -> int:
    """A copy of the context: for the next depth, or for each repetition where it cannot be cut back."""
    needs_copy = case.is_continued or not case.subject.can_roll_back
    return expected.kv + expected.state if needs_copy else 0


def _shift_bytes(case: Case) -> int:
    """Shifting the positions of quantized keys makes the engine unpack one layer of them to float32."""
    if case.fill == "real" or case.type_k in FLOAT_TYPES:
        return 0
    unpacked = context_forecast(replace(case, type_k="f32", type_v="f32"))
    return unpacked.kv // case.subject.header.integer("block_count")


def _smaller_alternative(case: Case, available: int) -> str:
    offers = []
    if case.type_k in FLOAT_TYPES and case.type_v in FLOAT_TYPES:
        smaller = needed_bytes(replace(case, type_k="q8_0", type_v="q8_0"))
        if smaller <= available:
            offers.append(f"--type-k q8_0 --type-v q8_0 ({format_bytes(smaller)})")
    fitting = _deepest_that_fits(case, available)
    if fitting is not None:
        offers.append(f"--depths up to {fitting}")
    return "try " + " or ".join(offers) if offers else "use a smaller model or close other programs"


def _deepest_that_fits(case: Case, available: int) -> int | None:
    """The largest halving of the depth that fits, None when not even an empty context does."""
    depth = case.n_depth
    while depth:
        depth //= 2
        if needed_bytes(replace(case, n_depth=depth)) <= available:
            return depth
    return None
