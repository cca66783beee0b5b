"""Memory that a model and its context need, from the engine's own simulated allocation."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sb_edge.arch import ARCH
from sb_edge.arch.layer_map import vocabulary_size
from sb_edge.arch.sparse_plan import SPARSE_OVERRIDE_KEY
from sb_edge.arch.spike_plan import OVERRIDE_KEY
from sb_edge.engine import find_engine
from sb_edge.engine.process import without_function
from sb_edge.gguf.reader import GgufHeader
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.util.errors import EngineError, GgufError, InferenceError

FlashChoice = Literal["auto", "on", "off"]

FLASH_ATTN: dict[FlashChoice, int] = {"auto": -1, "off": 0, "on": 1}
"""llama.cpp's numbers for the choice, which are also those of llama-bench's `flash_attn` field."""

DEFAULT_UBATCH = 256
"""Tokens computed at once. Windowed layers keep as many beyond the window; twice as many were no faster."""

TOOL = "sb-memory"
"""The engine's program that simulates the allocation, in a process that a hostile file may abort."""

_TIMEOUT = 60  # seconds; a 70B model takes a few
_BATCH = 2048
_LARGEST_CONTEXT = 1 << 20  # simulated; the engine allocates its bookkeeping
_TYPES = frozenset(name.lower() for name in BLOCK_SIZES)

# Memory that the engine takes beside the buffers that it reports (measured).
_ENGINE_BYTES = 17 << 19  # libraries, graphs, thread stacks
_CELL_BYTES = 54  # bookkeeping for a position of the context, whether a layer keeps it or not
_VOCABULARY_ENTRY_BYTES = 282  # a token or a merge, in the engine's tables and in the header as it was read


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes by which loading a model and using the whole context enlarges a process.

    Attributes:
        weights: used as they are mapped from the file.
        repacked: copies of the others, in the layout that the engine's kernels want.
        kv: key/value cache: the window for sliding-window layers, the context for full attention.
        state: recurrent state of linear-attention and convolution layers.
        buffers: the engine's work space and its output: an estimate.
        engine: the engine itself and its vocabulary: an estimate.
        originals: Originals of the repacked weights, mapped only while the model is loaded; not in the total.
        extra: Memory of the command beside the engine: copies of the context, a reference's weights.
    """

    weights: int
    repacked: int
    kv: int
    state: int
    buffers: int
    engine: int
    originals: int = 0
    extra: int = 0

    @property
    def total(self) -> int:
        """Growth of a process's resident memory."""
        loaded = self.weights + self.repacked + self.engine
        return loaded + self.kv + self.state + self.buffers + self.extra

    @property
    def address_space(self) -> int:
        """Maximum mapped size: the total, or while loading the whole file and the repacked copies."""
        return max(self.total, self.weights + self.repacked + self.engine + self.originals)

    def beyond_weights(self) -> MemoryForecast:
        """Remaining need once the model is loaded."""
        return replace(self, weights=0, repacked=0, originals=0, engine=0)


def uses_flash_attention(arch: str, choice: FlashChoice, type_k: str, type_v: str) -> bool:
    """Whether the engine is asked for flash attention.

    Upstream's flash attention rounds a float32 cache to float16, so "auto" means "off" with one.
    SpikingBrain's window attention has a kernel of its own, which does not round.

    Args:
        arch: `general.architecture`.
        choice: The setting.
        type_k, type_v: ggml types of the cached keys and values.
    """
    return choice == "on" or (choice == "auto" and (arch == ARCH or "f32" not in (type_k, type_v)))


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise InferenceError("must be positive", item=name, found=value)


@dataclass(frozen=True)
class EngineSettings:
    """How a model is loaded and its context made, as far as memory depends on it.

    Attributes:
        type_k: ggml type of the cached keys.
        type_v: ggml type of the cached values.
        n_seq_max: sequences that share the context.
        n_ubatch: tokens computed at once.
        n_outputs: tokens of a batch whose logits are kept.
        flash_attn: without it the attention scores of a whole ubatch are kept; see `uses_flash_attention`.
        swa_full: windowed layers keep the whole context.
        spikes: k of every coded projection; 0: none; None: as the file says.
        sparse: False: without the file's sparse layout.

    Raises:
        InferenceError: n_seq_max, n_ubatch or n_outputs is not positive, or a type is unknown.
    """

    type_k: str = "f16"
    type_v: str = "f16"
    n_seq_max: int = 1
    n_ubatch: int = DEFAULT_UBATCH
    n_outputs: int = 1
    flash_attn: FlashChoice = "auto"
    swa_full: bool = False
    spikes: float | None = None
    sparse: bool = True

    def __post_init__(self) -> None:
        for name in ("n_seq_max", "n_ubatch", "n_outputs"):
            _require_positive(name, getattr(self, name))
        for kind in (self.type_k, self.type_v):
            if kind not in _TYPES:
                raise InferenceError(
                    "is not a type of ggml", item="cache type", found=kind, expected="f16, f32, q8_0, ..."
                )


USUAL = EngineSettings()
"""Settings of one sequence with a float16 cache."""


def forecast(header: GgufHeader, n_ctx: int, settings: EngineSettings = USUAL) -> MemoryForecast:
    """Forecast the memory for a context of `n_ctx` tokens, divided among the sequences.

    Raises:
        GgufError: the engine cannot load the file.
        InferenceError: n_ctx is not positive, or the engine refuses the settings.
        EngineError: the engine is not built.
    """
    _require_positive("n_ctx", n_ctx)
    if n_ctx > _LARGEST_CONTEXT:
        return _extrapolate(header, n_ctx, settings)
    is_flash = uses_flash_attention(header.arch, settings.flash_attn, settings.type_k, settings.type_v)
    simulated = _simulate(
        header,
        {
            "n_ctx": n_ctx,
            "n_batch": min(_BATCH, n_ctx),
            "n_ubatch": min(settings.n_ubatch, n_ctx),
            "n_seq_max": settings.n_seq_max,
            "n_outputs": max(settings.n_outputs, settings.n_seq_max),
            "type_k": settings.type_k,
            "type_v": settings.type_v,
            "flash_attn": FLASH_ATTN[settings.flash_attn if is_flash else "off"],
            "swa_full": int(settings.swa_full),
            **_overrides(settings.spikes, settings.sparse),
        },
    )
    buffers = simulated["buffers"].values()
    context, state = sum(each["context"] for each in buffers), simulated["states"]
    output = 4 * max(settings.n_outputs, settings.n_seq_max) * vocabulary_size(header)
    bookkeeping = _CELL_BYTES * n_ctx if context > state else 0
    return replace(
        _weights(header, simulated),
        kv=context - state,
        state=state,
        buffers=sum(each["compute"] for each in buffers) + output + bookkeeping,
    )


def _extrapolate(header: GgufHeader, n_ctx: int, settings: EngineSettings) -> MemoryForecast:
    """Beyond every window, memory grows linearly with the context."""
    half, whole = (forecast(header, size, settings) for size in (_LARGEST_CONTEXT // 2, _LARGEST_CONTEXT))
    steps = (n_ctx - _LARGEST_CONTEXT) / (_LARGEST_CONTEXT // 2)

    def at(name: str) -> int:
        first, last = getattr(half, name), getattr(whole, name)
        return round(last + steps * (last - first))

    return replace(whole, kv=at("kv"), state=at("state"), buffers=at("buffers"))


def forecast_weights(header: GgufHeader, spikes: float | None = None, sparse: bool = True) -> MemoryForecast:
    """As `forecast`, for a model without any context."""
    return _weights(header, _simulate(header, _overrides(spikes, sparse)))


def _weights(header: GgufHeader, simulated: dict[str, Any]) -> MemoryForecast:
    buffers = simulated["buffers"].values()
    in_place = sum(each["model"] for each in buffers if each["in_place"])
    return MemoryForecast(
        weights=in_place,
        repacked=sum(each["model"] for each in buffers if not each["in_place"]),
        originals=max(header.nbytes - in_place, 0),
        kv=0,
        state=0,
        buffers=0,
        engine=_ENGINE_BYTES + _VOCABULARY_ENTRY_BYTES * _vocabulary_entries(header),
    )


def _overrides(spikes: float | None, sparse: bool) -> dict[str, object]:
    values = {OVERRIDE_KEY: spikes, SPARSE_OVERRIDE_KEY: None if sparse else 0.0}
    return {key: value for key, value in values.items() if value is not None}


def _simulate(header: GgufHeader, values: dict[str, object]) -> dict[str, Any]:
    """Run the engine's tool on a model; the same question is asked once."""
    path = header.files[0]
    stat = path.stat()
    arguments = tuple(f"{name}={value}" for name, value in values.items())
    return _ask(find_engine().tool(TOOL), path, (stat.st_size, stat.st_mtime_ns, stat.st_ino), arguments)


@lru_cache(maxsize=64)
def _ask(
    tool: Path, path: Path, _identity: tuple[int, int, int], arguments: tuple[str, ...]
) -> dict[str, Any]:
    command = [str(tool), str(path), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GgufError("the engine takes too long to read it", path=path, found=f"{_TIMEOUT} s") from None
    except OSError as error:
        raise EngineError("cannot be started", path=tool, found=error.strerror) from None
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    problem = _problem(done.stderr.splitlines(), done.returncode)
    raise no_context(path, problem) if done.returncode == _NO_CONTEXT else not_loaded(path, problem)


_NO_CONTEXT = 3  # exit status of the tool


def no_context(path: Path, problem: str | None) -> InferenceError:
    """The error for a context that the engine refuses, with its own message."""
    hint = "ask for a smaller --ctx-size, or other KV cache types"
    return InferenceError("the engine cannot make a context", path=path, found=problem, hint=hint)


def not_loaded(path: Path, problem: str) -> GgufError:
    """The error for a model that the engine refuses, with its own message."""
    hint = "check it with `sb-edge inspect`"
    return GgufError("the engine cannot load it", path=path, found=problem, hint=hint)


def _problem(log: list[str], status: int) -> str:
    """The line of the log that says most, without its function name."""
    if status < 0:
        return f"the engine stopped with signal {-status}"
    lines = [line for line in log if "error" in line or "failed" in line] or log
    return without_function(lines[-1] if lines else f"exit status {status}")


def _vocabulary_entries(header: GgufHeader) -> int:
    lists = (header.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    return sum(len(entries) for entries in lists if isinstance(entries, list))
