"""Bytes that decoding one token has to touch, and the share of the memory bandwidth that this uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sb_edge.errors import GgufError
from sb_edge.gguf_reader import GgufHeader, TensorEntry
from sb_edge.memory import forecast

STATE_PASSES = 2
"""A recurrent state is read and written for every token."""


@dataclass(frozen=True)
class TokenTraffic:
    """Bytes touched to decode one token: the weights, the cached keys and values in use, the recurrent state."""

    weights: int
    kv: int
    state: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.state


@dataclass(frozen=True)
class AttentionLayer:
    """The cache of one layer: Hkv·d values a position of keys and of values; window None: all positions."""

    key_width: int
    value_width: int
    window: int | None

    def bytes_read(self, positions: float, type_k: str, type_v: str) -> float:
        """Bytes of the keys and values that a token attends to when the context holds `positions`."""
        seen = positions if self.window is None else min(positions, self.window)
        return seen * (self.key_width * bytes_per_value(type_k) + self.value_width * bytes_per_value(type_v))


def token_traffic(header: GgufHeader, positions: float, *, type_k: str = "f16", type_v: str = "f16") -> TokenTraffic:
    """What has to pass from memory to the cores for one decoded token, each byte counted once.

    This is the least possible: every weight once (of an embedding table that is not also the output, one row; of
    routed experts, those in use), keys and values of the positions in the context or the window, recurrent state
    read and written. The processor's caches are left out, so a small model may seem to exceed the bandwidth.

    Args:
        header: the model's.
        positions: how many positions the token attends to, its own included; the mean over several tokens may be
            fractional.
        type_k: ggml type of the cached keys.
        type_v: ggml type of the cached values.

    Raises:
        GgufError: a key that sizes the cache is absent, or a cache type that ggml does not have.
    """
    kv = sum(layer.bytes_read(positions, type_k, type_v) for layer in attention_layers(header))
    state = forecast(header, 1, type_k=type_k, type_v=type_v).state
    return TokenTraffic(weights=weight_bytes(header), kv=round(kv), state=STATE_PASSES * state)


def weight_bytes(header: GgufHeader) -> int:
    """Bytes of the weights that one decoded token reads."""
    untied = any(tensor.name == "output.weight" for tensor in header.tensors)
    experts = header.metadata.get(f"{header.arch}.expert_count", 0)
    used = header.metadata.get(f"{header.arch}.expert_used_count", experts)

    def touched(tensor: TensorEntry) -> int:
        if tensor.name == "token_embd.weight" and untied:
            return tensor.nbytes // tensor.shape[0]
        if experts and "_exps." in tensor.name:
            return tensor.nbytes * used // experts
        return tensor.nbytes

    return sum(touched(tensor) for tensor in header.tensors)


def attention_layers(header: GgufHeader) -> list[AttentionLayer]:
    """The layers that keep keys and values, from the header's keys (GGUF's words for them).

    Raises:
        GgufError: a key that sizes the cache is absent.
    """
    heads = _required(header, "attention.head_count")
    heads_kv = header.metadata.get(f"{header.arch}.attention.head_count_kv", heads)
    embedding = _required(header, "embedding_length")
    layers = int(_required(header, "block_count"))
    recurrent = header.metadata.get(f"{header.arch}.attention.recurrent_layers", False)
    window = header.metadata.get(f"{header.arch}.attention.sliding_window") or None
    found = []
    for layer in range(layers):
        if _of_layer(recurrent, layer):
            continue
        head_size = embedding // _of_layer(heads, layer)
        key_size = header.metadata.get(f"{header.arch}.attention.key_length", head_size)
        value_size = header.metadata.get(f"{header.arch}.attention.value_length", head_size)
        count = _of_layer(heads_kv, layer)
        found.append(AttentionLayer(key_size * count, value_size * count, window))
    return found


def bytes_per_value(ggml_type: str) -> float:
    """Bytes of one value stored in a ggml type; a block's scale is shared out over its values.

    Raises:
        GgufError: ggml has no such type.
    """
    import gguf

    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[ggml_type.upper()]]
    except KeyError:
        raise GgufError("unknown cache type", found=repr(ggml_type), expected="f16, q8_0, bf16 or f32") from None
    return float(size / block)


def _required(header: GgufHeader, key: str) -> Any:
    full = f"{header.arch}.{key}"
    try:
        return header.metadata[full]
    except KeyError:
        raise GgufError("key not found", path=header.files[0], item=full, hint="convert the model again") from None


def _of_layer(value: Any, layer: int) -> Any:
    """Many keys hold one value for all layers or an array with one a layer."""
    return value[layer] if isinstance(value, Sequence) or hasattr(value, "__array__") else value
