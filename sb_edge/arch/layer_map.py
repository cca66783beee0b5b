"""Facts in a GGUF's header that follow from its architecture: layers, vocabulary."""

from __future__ import annotations

import numpy as np

from sb_edge.arch import ARCH
from sb_edge.gguf.reader import GgufHeader
from sb_edge.util.errors import GgufError

MAX_LAYERS = 512
"""The engine's own limit (LLAMA_MAX_LAYERS)."""


def layer_count(header: GgufHeader) -> int:
    """Number of layers.

    Raises:
        GgufError: absent or impossible.
    """
    n_layer = header.integer("block_count")
    if not 0 < n_layer <= MAX_LAYERS:
        raise _error(header, "block_count", "is impossible", n_layer, f"1 to {MAX_LAYERS}")
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


def _per_layer(header: GgufHeader, key: str, n_layer: int) -> list[int]:
    """A key that is one number, or one a layer."""
    value = header.metadata.get(f"{header.arch}.{key}")
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) == n_layer:
        return [_checked(header, key, int(item)) for item in value]
    return [_number(header, key)] * n_layer


def _error(header: GgufHeader, key: str, message: str, found: object, expected: object) -> GgufError:
    item = f"{header.arch}.{key}"
    return GgufError(message, path=header.files[0], item=item, found=found, expected=expected)
