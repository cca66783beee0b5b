"""How much memory a model needs at a context length, computed from its header alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import psutil

from sb_edge.errors import GgufError, InferenceError, OutOfMemoryForecast
from sb_edge.gguf_reader import GGML_TYPES, GgufHeader

_CELL_STEP = 256  # the engine rounds contexts and window caches up to this
_MAX_LAYERS = 512  # the engine's own limit (LLAMA_MAX_LAYERS)
_BLOCKS = {name.lower(): (block, size) for name, block, size in GGML_TYPES.values()}


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes.

    Attributes:
        weights: all tensors.
        kv: key/value cache: the window for sliding-window layers, the context for full attention.
        state: recurrent state of linear-attention layers.
        buffers: the engine's work space and its output: an estimate, the rest is exact.
    """

    weights: int
    kv: int
    state: int
    buffers: int

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.kv + self.state + self.buffers


@dataclass(frozen=True)
class _Shape:
    """What the forecast needs of a model; layers are listed one by one."""

    recurrent: list[bool]
    kv_heads: list[int]
    window: int
    key_length: int
    value_length: int
    hidden: int
    heads: int
    ffn: int
    vocab: int


def forecast(
    header: GgufHeader,
    n_ctx: int,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    n_seq_max: int = 1,
    n_ubatch: int = 512,
    flash_attn: bool = True,
) -> MemoryForecast:
    """Forecast the memory for a context of `n_ctx` tokens, divided among `n_seq_max` sequences.

    Key/value cells are counted as llama_kv_cache_iswa does: a window-sized cache has window + n_ubatch
    cells. In other architectures than spikingbrain every layer counts as full attention.

    Args:
        header: of the model.
        n_ctx: tokens.
        type_k: ggml type of the cached keys.
        type_v: ggml type of the cached values.
        n_seq_max: sequences.
        n_ubatch: tokens computed at once.
        flash_attn: without it the attention scores of a whole ubatch are kept.

    Raises:
        GgufError: the header lacks a key or has an impossible one.
        InferenceError: n_ctx, n_seq_max or n_ubatch is not positive, or a type is unknown.
    """
    for name, value in (("n_ctx", n_ctx), ("n_seq_max", n_seq_max), ("n_ubatch", n_ubatch)):
        if value < 1:
            raise InferenceError("must be positive", item=name, found=value)
    shape = _shape(header)
    cells = _pad(-(-_pad(n_ctx) // n_seq_max))
    window_cells = min(cells, _pad(min(cells, shape.window + n_ubatch))) if shape.window else cells
    kv = state = 0
    for recurrent, heads in zip(shape.recurrent, shape.kv_heads, strict=True):
        if recurrent:
            state += 4 * heads * shape.key_length * shape.value_length * n_seq_max
        else:
            row = _row(type_k, heads * shape.key_length) + _row(type_v, heads * shape.value_length)
            kv += window_cells * row * n_seq_max
    attended = window_cells if not all(shape.recurrent) else 0
    buffers = _buffers(shape, attended, min(n_ubatch, n_ctx), n_seq_max, flash_attn)
    return MemoryForecast(header.nbytes, kv, state, buffers)


def _pad(cells: int) -> int:
    return -(-cells // _CELL_STEP) * _CELL_STEP


def _row(kind: str, values: int) -> int:
    if kind not in _BLOCKS:
        raise InferenceError(
            "is not a type of ggml", item="cache type", found=kind, expected="f16, f32, q8_0, ..."
        )
    block, size = _BLOCKS[kind]
    return -(-values // block) * size


def _buffers(shape: _Shape, cells: int, n_ubatch: int, n_seq_max: int, flash_attn: bool) -> int:
    """The engine's compute buffer and output buffer.

    The allocator reuses space, so the peak is the larger of two moments: a layer (mask, scores, the FFN's
    gate and up) and the output (logits of a whole ubatch). Float32 unless said otherwise.
    """
    kv = max(shape.kv_heads) * (shape.key_length + shape.value_length)
    mask = cells * n_ubatch * (2 if flash_attn else 4)
    scores = 0 if flash_attn else cells * n_ubatch * shape.heads * 4
    rows = 3 * shape.hidden + 2 * kv if flash_attn else 4 * shape.hidden + 3 * kv
    layer = mask + max(scores, 8 * n_ubatch * shape.ffn) + 4 * n_ubatch * rows
    output = 4 * n_ubatch * (shape.vocab + 2 * shape.hidden)
    return max(layer, output) + 4 * n_seq_max * shape.vocab


def _shape(header: GgufHeader) -> _Shape:
    n_layer = layer_count(header)
    hidden = _number(header, "embedding_length")
    heads = _per_layer(header, "attention.head_count", n_layer)
    kv_heads = _per_layer(header, "attention.head_count_kv", n_layer, heads)
    widest = max(heads)
    head_dim = hidden // widest if widest else 0
    return _Shape(
        recurrent=recurrent_layers(header),
        kv_heads=kv_heads,
        window=_number(header, "attention.sliding_window", 0) if header.arch == "spikingbrain" else 0,
        key_length=_number(header, "attention.key_length", head_dim),
        value_length=_number(header, "attention.value_length", head_dim),
        hidden=hidden,
        heads=widest,
        ffn=max(_per_layer(header, "feed_forward_length", n_layer, [4 * hidden] * n_layer)),
        vocab=vocabulary_size(header),
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
    value = header.metadata.get(f"{header.arch}.attention.recurrent_layers")
    if value is None:
        even = header.arch == "spikingbrain"  # the engine's default for it: even layers are GLA
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


def require_memory(
    header: GgufHeader, n_ctx: int, *, type_k: str = "f16", type_v: str = "f16", n_ubatch: int = 512
) -> None:
    """Refuse to load a model that will not fit, with the figure and what would.

    Raises:
        OutOfMemoryForecast: the forecast exceeds the memory that is available now.
    """
    expected = forecast(header, n_ctx, type_k=type_k, type_v=type_v, n_ubatch=n_ubatch)
    available = psutil.virtual_memory().available
    if expected.total > available:
        raise OutOfMemoryForecast(
            f"a context of {n_ctx} tokens will not fit in memory",
            path=header.files[0],
            found=f"{available / 2**30:.2f} GiB available",
            expected=f"{expected.total / 2**30:.2f} GiB: weights {expected.weights / 2**30:.2f}, "
            f"KV cache and states {(expected.kv + expected.state) / 2**30:.2f}",
            hint="ask for a smaller --context or --kv-type q8_0, or quantize the model further",
        )
