"""Bytes that decoding one token has to touch, to be held against the memory bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from sb_edge.arch import ARCH
from sb_edge.arch.sparse_plan import dense_tensors
from sb_edge.gguf.reader import GgufHeader, TensorEntry
from sb_edge.memory.forecast import EngineSettings, forecast

STATE_PASSES = 2
"""A recurrent state is read and written for every token."""

PROBE_CELLS = 256
"""The engine's smallest cache, window or not: its size over this is that of one position in all layers."""


@dataclass(frozen=True)
class TokenTraffic:
    """Bytes touched to decode one token: weights, cached keys and values in use, recurrent state."""

    weights: int
    kv: int
    state: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.state


def token_traffic(
    header: GgufHeader, positions: float, *, type_k: str = "f16", type_v: str = "f16"
) -> TokenTraffic:
    """Bytes that pass from memory to the cores for one decoded token, each counted once.

    This is the least possible: every weight once (of an embedding table that is not also the output, one row;
    of routed experts, those in use), keys and values of the positions in the context or the window, recurrent
    state read and written. The processor's caches are left out, so a small model may seem to exceed the
    bandwidth. Of architectures other than spikingbrain every layer counts as full attention.

    Args:
        header: the model's.
        positions: how many positions the token attends to, its own included; the mean over several tokens may
            be fractional.
        type_k: ggml type of the cached keys.
        type_v: ggml type of the cached values.

    Raises:
        GgufError: a key that sizes the cache is absent.
        InferenceError: a cache type that ggml does not have.
    """
    smallest = forecast(header, PROBE_CELLS, EngineSettings(type_k, type_v))
    window = header.integer("attention.sliding_window", 0) if header.arch == ARCH else 0
    attended = min(positions, window) if window else positions
    return TokenTraffic(
        weights=weight_bytes(header),
        kv=round(attended * smallest.kv / PROBE_CELLS),
        state=STATE_PASSES * smallest.state,
    )


def weight_bytes(header: GgufHeader) -> int:
    """Bytes of the weights that one decoded token reads, by rows.

    Columns and zones of a sparse layout do not count: such a model is held against its own dense product, and
    where it skips columns it may exceed what the bandwidth allows that.
    """
    untied = any(tensor.name == "output.weight" for tensor in header.tensors)
    experts = header.integer("expert_count", 0)
    used = header.integer("expert_used_count", experts)

    def touched(tensor: TensorEntry) -> int:
        if tensor.name == "token_embd.weight" and untied:
            return tensor.nbytes // tensor.shape[0]
        if experts and "_exps." in tensor.name:
            return tensor.nbytes * used // experts
        return tensor.nbytes

    return sum(touched(tensor) for tensor in dense_tensors(header))
