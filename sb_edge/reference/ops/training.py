"""Gated linear attention for training: the chunked form with one reference point a chunk, and few operations.

With b the running sum of log gates in a chunk and m half of its total, per channel, key j weighs
exp(b_i - m) * exp(m - b_j) for query i. Neither factor overflows as long as the total is not below `LEAST`;
where it is, `chunk` does the work, which holds for any gates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sb_edge.reference.ops import chunk
from sb_edge.reference.ops.naive import accumulation_dtype

CHUNK = 32

LEAST = -40.0
"""Of a chunk's log gates, summed: an exponent's rounding error grows with it, and exp(20) leaves room for any
q and k in float32."""


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, scale: float, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The operator of `naive.gated_linear_attention`, same arguments, shapes and results; differentiable."""
    dtype = accumulation_dtype(q.dtype)
    length, kv_heads = k.shape[1:3]
    missing = -length % CHUNK

    def chunks(x: Tensor) -> Tensor:
        """[B, T, Hkv, ...] -> [B, N, Hkv, C, ...]; rows of zeros write nothing and forget nothing."""
        padded = functional.pad(x.to(dtype), (0, 0) * (x.dim() - 2) + (0, missing))
        return padded.unflatten(1, (-1, CHUNK)).transpose(2, 3)

    gates = chunks(log_a)
    through = gates.cumsum(-2)
    total = through[..., -1:, :]  # [B, N, Hkv, 1, d]
    if bool(total.detach().min() < LEAST):
        return chunk.gated_linear_attention(q, k, v, log_a, scale, state)
    middle = total / 2
    queries = chunks((q.to(dtype) * scale).unflatten(2, (kv_heads, -1)))
    queries = (queries * (through - middle).exp().unsqueeze(-2)).flatten(-3, -2)  # [B, N, Hkv, C * G, d]
    keys = chunks(k) * (middle - through).exp()
    values = chunks(v)
    half = middle.exp().mT  # [B, N, Hkv, d, 1]
    if state is None:
        state = keys.new_zeros(k.shape[0], kv_heads, k.shape[3], v.shape[3])
    before, after = _states(half * (keys.mT @ values), half.square(), state.to(dtype))
    own = (queries @ keys.mT).unflatten(-2, (CHUNK, -1))  # [B, N, Hkv, C, G, C]
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu(1)
    own = own.masked_fill(future.unsqueeze(1), 0.0).flatten(-3, -2)
    o = (own @ values + queries @ (half * before)).unflatten(-2, (CHUNK, -1))
    return o.transpose(2, 3).flatten(1, 2)[:, :length].flatten(2, 3).to(q.dtype), after


def _states(written: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk, [B, N, Hkv, d, dv], and the one after the last, [B, Hkv, d, dv]."""
    before = []
    for new, kept in zip(written.unbind(1), decay.unbind(1), strict=True):
        before.append(state)
        state = kept * state + new
    return torch.stack(before, dim=1), state
