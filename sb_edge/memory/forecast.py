"""How much memory a model needs at a context length, computed from its header alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sb_edge.arch.config import ARCH
from sb_edge.gguf.reader import GgufHeader, padded
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.memory.flash_attention import FlashChoice, uses_flash_attention
from sb_edge.memory.repacking import weight_bytes
from sb_edge.util.errors import GgufError, InferenceError

DEFAULT_UBATCH = 256
"""Tokens computed at once. Windowed layers keep as many beyond the window; twice as many were no faster."""

_CELL_STEP = 256  # the engine rounds contexts and window caches up to this
_MAX_LAYERS = 512  # the engine's own limit (LLAMA_MAX_LAYERS)
_BLOCKS = {name.lower(): sizes for name, sizes in BLOCK_SIZES.items()}
_Q8_0 = "q8_0"

# Measured: what the engine takes beside the buffers that it reports.
_ENGINE_BYTES = 4 << 20  # libraries, graphs, thread stacks
_CELL_BYTES = 54  # the engine's books on a position of the context, whether a layer keeps it or not
_VOCABULARY_ENTRY_BYTES = 235  # a token or a merge, in the engine's tables and in the header as it was read


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
        originals: of the repacked weights, mapped while the model is loaded, and no part of the total.
        extra: what a command takes beside the engine: copies of the context, a reference's weights.
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
        """Everything together: what a process's resident memory grows by."""
        loaded = self.weights + self.repacked + self.engine
        return loaded + self.kv + self.state + self.buffers + self.extra

    @property
    def address_space(self) -> int:
        """What is mapped at most: all of it, or while loading the whole file and the repacked copies."""
        return max(self.total, self.weights + self.repacked + self.engine + self.originals)

    def beyond_weights(self) -> MemoryForecast:
        """What is still needed when the model is loaded."""
        return replace(self, weights=0, repacked=0, originals=0, engine=0)


@dataclass(frozen=True)
class _Shape:
    """What the forecast needs of a model; layers are listed one by one."""

    recurrent: list[bool]
    kv_heads: list[int]
    state_values: list[int]
    window: int
    key_length: int
    value_length: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    is_rwkv: bool


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
        spikes, sparse: as the engine is told, see `weight_bytes`.

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
            if kind not in _BLOCKS:
                raise InferenceError(
                    "is not a type of ggml", item="cache type", found=kind, expected="f16, f32, q8_0, ..."
                )


USUAL = EngineSettings()
"""Settings of one sequence with a float16 cache."""


def forecast(header: GgufHeader, n_ctx: int, settings: EngineSettings = USUAL) -> MemoryForecast:
    """Forecast the memory for a context of `n_ctx` tokens, divided among the sequences.

    Key/value cells are counted as llama_kv_cache_iswa does: a window-sized cache has window + n_ubatch
    cells. In other architectures than spikingbrain, lfm2 and rwkv7 every layer counts as full attention.

    Raises:
        GgufError: the header lacks a key or has an impossible one.
        SpikeError: the file's spike keys, or `spikes`, are wrong.
        InferenceError: n_ctx is not positive.
    """
    _require_positive("n_ctx", n_ctx)
    shape = _shape(header)
    cells = _cells(shape, n_ctx, settings)
    kv = sum(
        cells
        * (
            _row(settings.type_k, heads * shape.key_length)
            + _row(settings.type_v, heads * shape.value_length)
        )
        for recurrent, heads in zip(shape.recurrent, shape.kv_heads, strict=True)
        if not recurrent
    )
    activations = min(settings.n_ubatch, n_ctx) * _row(_Q8_0, max(shape.ffn, shape.hidden))
    output = 4 * max(settings.n_outputs, settings.n_seq_max) * shape.vocab
    # An RWKV has no cache to keep books on.
    books = 0 if shape.is_rwkv else _CELL_BYTES * _pad(n_ctx)
    return replace(
        forecast_weights(header, settings.spikes, settings.sparse),
        kv=kv * settings.n_seq_max,
        state=4 * sum(shape.state_values) * settings.n_seq_max,
        buffers=compute_buffer(header, n_ctx, settings) + activations + output + books,
    )


def forecast_weights(header: GgufHeader, spikes: float | None = None, sparse: bool = True) -> MemoryForecast:
    """As `forecast`, for a model without any context.

    Raises:
        GgufError, SpikeError: the file's spike keys, or `spikes`, are wrong.
    """
    weights = weight_bytes(header, spikes, sparse)
    return MemoryForecast(
        weights=weights.mapped,
        repacked=weights.repacked,
        originals=weights.originals,
        kv=0,
        state=0,
        buffers=0,
        engine=_ENGINE_BYTES + _VOCABULARY_ENTRY_BYTES * _vocabulary_entries(header),
    )


def compute_buffer(header: GgufHeader, n_ctx: int, settings: EngineSettings = USUAL) -> int:
    """Bytes of what the engine calls its compute buffer.

    The allocator reuses space, so the peak is the largest of three moments; float32 unless said otherwise.
    Attention (mask, scores, activations), the FFN (mask, its gate, up and product, activations), the output
    (logits). RWKV has six shifted copies of its activations instead of attention. The counts of activations
    are those that reproduce the engine's own figures.

    Raises:
        GgufError: the header lacks a key or has an impossible one.
    """
    shape = _shape(header)
    flash_attn = uses_flash_attention(header.arch, settings.flash_attn, settings.type_k, settings.type_v)
    n_rows = min(settings.n_ubatch, n_ctx)
    cells = 0 if all(shape.recurrent) else _cells(shape, n_ctx, settings)
    kv = max(shape.kv_heads) * (shape.key_length + shape.value_length)
    mask = cells * n_rows * (2 if flash_attn else 4)
    scores = 0 if flash_attn else 4 * cells * n_rows * shape.heads
    attention = scores + 4 * n_rows * (4 * shape.hidden + 3 * kv)
    ffn = 4 * n_rows * (3 * shape.ffn + 4 * shape.hidden)
    output = 4 * min(settings.n_outputs, n_rows) * shape.vocab + 4 * n_rows * 2 * shape.hidden
    if shape.is_rwkv:
        return max(4 * n_rows * 19 * shape.hidden + 2 * 4 * max(shape.state_values), ffn, output)
    return max(mask + max(attention, ffn), output)


def _cells(shape: _Shape, n_ctx: int, settings: EngineSettings) -> int:
    """Positions that an attention layer keeps of one sequence."""
    cells = _pad(-(-_pad(n_ctx) // settings.n_seq_max))
    if shape.window and not settings.swa_full:
        return min(cells, _pad(min(cells, shape.window + settings.n_ubatch)))
    return cells


def _pad(cells: int) -> int:
    return padded(cells, _CELL_STEP)


def _row(kind: str, values: int) -> int:
    block, size = _BLOCKS[kind]
    return -(-values // block) * size


def _shape(header: GgufHeader) -> _Shape:
    n_layer = layer_count(header)
    hidden = _number(header, "embedding_length")
    heads = _per_layer(header, "attention.head_count", n_layer)
    kv_heads = _per_layer(header, "attention.head_count_kv", n_layer, heads)
    widest = max(heads)
    head_dim = hidden // widest if widest else 0
    key_length = _number(header, "attention.key_length", head_dim)
    value_length = _number(header, "attention.value_length", head_dim)
    recurrent = recurrent_layers(header)
    wkv_head = _number(header, "wkv.head_size", 0)
    conv_cache = _number(header, "shortconv.l_cache", 0)

    def state_values(layer: int) -> int:
        if not recurrent[layer]:
            return 0
        if wkv_head:
            return hidden * (_number(header, "token_shift_count", 2) + wkv_head)
        if conv_cache:
            return hidden * (conv_cache - 1)
        return kv_heads[layer] * key_length * value_length

    return _Shape(
        recurrent=recurrent,
        kv_heads=kv_heads,
        state_values=[state_values(layer) for layer in range(n_layer)],
        window=_number(header, "attention.sliding_window", 0) if header.arch == ARCH else 0,
        key_length=key_length,
        value_length=value_length,
        hidden=hidden,
        heads=widest,
        ffn=max(_per_layer(header, "feed_forward_length", n_layer, [4 * hidden] * n_layer)),
        vocab=vocabulary_size(header),
        is_rwkv=wkv_head > 0,
    )


def layer_count(header: GgufHeader) -> int:
    """Number of layers.

    Raises:
        GgufError: absent or impossible.
    """
    n_layer = header.integer("block_count")
    if not 0 < n_layer <= _MAX_LAYERS:
        raise _error(header, "block_count", "is impossible", n_layer, f"1 to {_MAX_LAYERS}")
    return n_layer


def recurrent_layers(header: GgufHeader) -> list[bool]:
    """Per layer: True if it keeps a recurrent state instead of keys and values.

    Raises:
        GgufError: the list is not one value a layer.
    """
    n_layer = layer_count(header)
    if header.integer("wkv.head_size", 0):
        return [True] * n_layer
    if header.integer("shortconv.l_cache", 0):
        return [heads == 0 for heads in _per_layer(header, "attention.head_count_kv", n_layer)]
    value = header.metadata.get(f"{header.arch}.attention.recurrent_layers")
    if value is None:
        even = header.arch == ARCH  # the engine's default for it: even layers are GLA
        return [even and layer % 2 == 0 for layer in range(n_layer)]
    if isinstance(value, bool):
        return [value] * n_layer
    if not isinstance(value, np.ndarray) or len(value) != n_layer:
        found = f"{len(value)} values" if isinstance(value, np.ndarray) else repr(value)[:40]
        raise _error(header, "attention.recurrent_layers", "is not one value a layer", found, n_layer)
    return [bool(flag) for flag in value]


def vocabulary_size(header: GgufHeader) -> int:
    """Number of tokens: of the vocabulary in the file, or as `vocab_size` states it, or 0."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else _number(header, "vocab_size", 0)


def _number(header: GgufHeader, key: str, default: int | None = None) -> int:
    return _checked(header, key, header.integer(key, default))


def _checked(header: GgufHeader, key: str, value: int) -> int:
    if not 0 <= value < 2**31:
        raise _error(header, key, "is impossible", value, "0 to 2147483647")
    return value


def _per_layer(header: GgufHeader, key: str, n_layer: int, default: list[int] | None = None) -> list[int]:
    """A key that is one number, or one a layer."""
    value = header.metadata.get(f"{header.arch}.{key}")
    if value is None and default is not None:
        return default
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) == n_layer:
        return [_checked(header, key, int(item)) for item in value]
    return [_number(header, key)] * n_layer


def _error(header: GgufHeader, key: str, message: str, found: object, expected: object) -> GgufError:
    item = f"{header.arch}.{key}"
    return GgufError(message, path=header.files[0], item=item, found=found, expected=expected)


def _vocabulary_entries(header: GgufHeader) -> int:
    lists = (header.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    return sum(len(entries) for entries in lists if isinstance(entries, list))
