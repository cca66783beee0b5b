"""Refusing, before it is loaded, what will not fit in memory, with the figure and what would fit instead."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from sb_edge.arch.layer_map import layer_count, vocabulary_size
from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.forecast import USUAL, EngineSettings, MemoryForecast, forecast, forecast_weights
from sb_edge.system.cgroup import Group, groups
from sb_edge.util.errors import OutOfMemoryForecast
from sb_edge.util.output import format_bytes

FLOAT_TYPES = {"f32", "f16", "bf16"}
SMALLER_TYPES: dict[str, Any] = {"type_k": "q8_0", "type_v": "q8_0"}
"""KV cache types that are offered in place of those."""

SMALLER_OPTIONS = "--cache-type-k q8_0 --cache-type-v q8_0"
"""The same as options of the command line."""

SMALLEST_CONTEXT = 256
"""The engine rounds contexts up to it."""

_ROOT = Path("/")
_ENGINE_BOUND = 512 << 20  # libraries, vocabulary, interpreter

Alternative = tuple[str, MemoryForecast]
"""What to ask for instead, in words, and what it would take."""


@dataclass(frozen=True)
class Room:
    """Memory that this process may still take, bytes.

    Attributes:
        physical: Memory available without swapping, or less where a cgroup allows less.
        address_space: what `ulimit -v` leaves; None: no limit.
    """

    physical: int
    address_space: int | None = None

    @classmethod
    def now(cls, root: Path = _ROOT) -> Room:
        """Available memory now.

        Args:
            root: where `proc` and `sys` are mounted.
        """
        rooms = [_group_room(group) for group in groups("memory", root)]
        free = psutil.virtual_memory().available
        physical = min([free, *(room for room in rooms if room is not None)])
        return cls(max(physical, 0), _address_space())

    def shortage(self, need: MemoryForecast) -> tuple[int, int] | None:
        """Bytes needed and available where the latter are too few, else None."""
        if need.total > self.physical:
            return need.total, self.physical
        if self.address_space is not None and need.address_space > self.address_space:
            return need.address_space, self.address_space
        return None


def require_memory(
    header: GgufHeader,
    n_ctx: int,
    settings: EngineSettings = USUAL,
    *,
    is_loaded: bool = False,
    extra: int = 0,
    context_option: str = "--ctx-size",
    kv_option: str | None = "--cache-type-k",
    room: Room | None = None,
) -> None:
    """Refuse to load a model, or to make a context for a loaded one, that will not fit.

    Args:
        header: the model's.
        n_ctx: tokens.
        settings: what decides the memory besides.
        is_loaded: the weights are in memory already.
        extra: bytes that the command takes beside the engine.
        context_option: how a smaller context is asked for.
        kv_option: how a smaller KV cache is asked for; None: it cannot be.
        room: what there is; None: `Room.now()`.

    Raises:
        OutOfMemoryForecast: with the need, the available memory, and settings that would fit.
        GgufError, SpikeError, InferenceError: as `forecast`.
    """

    def need(context: int, settings: EngineSettings) -> MemoryForecast:
        expected = forecast(header, context, settings)
        return replace(expected.beyond_weights() if is_loaded else expected, extra=extra)

    def smaller_types() -> Iterable[Alternative]:
        if kv_option is not None and {settings.type_k, settings.type_v} <= FLOAT_TYPES:
            yield SMALLER_OPTIONS, need(n_ctx, replace(settings, **SMALLER_TYPES))

    def smaller_contexts() -> Iterable[Alternative]:
        context = n_ctx // 2
        while context >= SMALLEST_CONTEXT:
            yield f"{context_option} {context}", need(context, settings)
            context //= 2

    room = Room.now() if room is None else room
    if _certainly_fits(header, room, extra + _context_bound(header, n_ctx, settings)):
        return
    refuse_shortage(
        need(n_ctx, settings),
        room,
        f"a context of {n_ctx} tokens",
        path=header.files[0],
        alternatives=(smaller_types(), smaller_contexts()),
    )


def require_memory_for_weights(
    header: GgufHeader, spikes: float | None, room: Room | None = None, *, sparse: bool = True
) -> None:
    """Refuse to load a model whose weights alone will not fit.

    Raises:
        OutOfMemoryForecast: with the need and the available memory.
        GgufError, SpikeError: the file's spike keys, or `spikes`, are wrong.
    """
    room = Room.now() if room is None else room
    if not _certainly_fits(header, room, 0):
        need = forecast_weights(header, spikes, sparse)
        refuse_shortage(need, room, "the model", path=header.files[0])


def _certainly_fits(header: GgufHeader, room: Room, context: int) -> bool:
    """Far from the limit, the engine need not be asked: weights are kept twice at most."""
    need = _ENGINE_BOUND + 3 * header.nbytes + context
    return need <= room.physical and (room.address_space is None or need <= room.address_space)


def _context_bound(header: GgufHeader, n_ctx: int, settings: EngineSettings) -> int:
    """More than any context and its buffers take: float32 keys and values of full width in every layer."""
    layers, hidden = layer_count(header), header.integer("embedding_length")
    cells = max(n_ctx, SMALLEST_CONTEXT) * settings.n_seq_max
    rows = min(settings.n_ubatch, cells)
    widest = (
        16 * hidden + vocabulary_size(header) + cells
    )  # a row of activations, logits or one head's scores
    return 32 * cells * layers * hidden + 8 * settings.n_seq_max * layers * hidden**2 + 256 * rows * widest


def refuse_shortage(
    need: MemoryForecast,
    room: Room,
    what: str,
    *,
    path: Path,
    item: str | None = None,
    alternatives: Sequence[Iterable[Alternative]] = (),
) -> None:
    """Refuse what does not fit, offering the first of each kind of alternative that does.

    Args:
        need: Forecast.
        room: what there is.
        what: will not fit, in words.
        path: Path of the model.
        item: the setting at fault.
        alternatives: by kind, each from large to small; drawn from only if needed.

    Raises:
        OutOfMemoryForecast: it does not fit.
    """
    shortage = room.shortage(need)
    if shortage is None:
        return
    offers = []
    for kind in alternatives:
        fitting = next((each for each in kind if room.shortage(each[1]) is None), None)
        if fitting is not None:
            offers.append(f"{fitting[0]} ({format_bytes(fitting[1].total)})")
    needed, available = shortage
    raise OutOfMemoryForecast(
        f"{what} will not fit in memory: it needs {format_bytes(needed)}{_parts(need, needed)}".strip(),
        path=path,
        item=item,
        found=f"{format_bytes(available)} available",
        hint="try " + " or ".join(offers) if offers else "use a smaller model or close other programs",
    )


def _parts(need: MemoryForecast, needed: int) -> str:
    named = (
        ("weights", need.weights + need.repacked + needed - need.total),
        ("KV cache and states", need.kv + need.state),
        ("buffers", need.buffers + need.engine),
        ("beside the engine", need.extra),
    )
    return ", " + ", ".join(f"{format_bytes(size)} {name}" for name, size in named if size)


def _address_space() -> int | None:
    if sys.platform != "linux":
        return None
    process = psutil.Process()
    soft, _ = process.rlimit(psutil.RLIMIT_AS)
    return None if soft == psutil.RLIM_INFINITY else max(soft - process.memory_info().vms, 0)


def _group_room(group: Group) -> int | None:
    """What a group's memory limit leaves; None: no limit, or one that cannot be seen.

    Pages of files count as free: they are given back when the group reaches its limit.
    """
    if group.version == 2:
        limit, usage, prefix = group.number("memory.max"), group.number("memory.current"), ""
    else:
        limit = group.number("memory.limit_in_bytes")
        usage, prefix = group.number("memory.usage_in_bytes"), "total_"
    if limit is None or usage is None:
        return None
    files = (f"{prefix}inactive_file", f"{prefix}active_file")
    lines = (line.split() for line in group.text("memory.stat").splitlines())
    pages = sum(int(words[1]) for words in lines if words and words[0] in files)
    return limit - max(usage - pages, 0)
