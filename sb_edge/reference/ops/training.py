"""Gated linear attention for training: the chunked form with one reference point a chunk, and few operations.

With b the running sum of log gates in a chunk and m half of its total, per channel, key j weighs
exp(b_i - m) * exp(m - b_j) for query i. Neither factor overflows as long as the total is not below `LEAST`;
where it is, `chunk` does the work, which holds for any gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sb_edge.reference.ops import chunk
from sb_edge.reference.ops.chunk import join, split, states
from sb_edge.reference.ops.naive import accumulation_dtype, initial_state

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
    keys, values, gates = (split(x, CHUNK, dtype) for x in (k, v, log_a))
    through = gates.cumsum(-2)
    total = through[..., -1:, :]  # [B, N, Hkv, 1, d]
    if bool(total.detach().min() < LEAST):
        return chunk.gated_linear_attention(q, k, v, log_a, scale, state)
    middle = total / 2
    queries = split((q.to(dtype) * scale).unflatten(2, (kv_heads, -1)), CHUNK, dtype)
    queries = (queries * (through - middle).exp().unsqueeze(-2)).flatten(-3, -2)  # [B, N, Hkv, C * G, d]
    keys = keys * (middle - through).exp()
    half = middle.exp().mT  # [B, N, Hkv, d, 1]
    before, after = states(half * (keys.mT @ values), half.square(), initial_state(k, v, state, dtype))
    own = (queries @ keys.mT).unflatten(-2, (CHUNK, -1))  # [B, N, Hkv, C, G, C]
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu(1)
    own = own.masked_fill(future.unsqueeze(1), 0.0).flatten(-3, -2)
    o = (own @ values + queries @ (half * before)).unflatten(-2, (CHUNK, -1))
    return join(o, length).to(q.dtype), after
