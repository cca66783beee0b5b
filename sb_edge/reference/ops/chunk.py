"""Gated linear attention in chunks: matrix products instead of one step a token.

Within a chunk the weight of key j for query i is exp(b_i - b_j), b the running sum of log gates. Taken
apart, exp(b_i) * exp(-b_j) overflows float32 as soon as a gate is nearly closed, and b_i - b_j loses its low
digits once b has grown large. So a chunk is halved again and again (64, 32, ..., 2): every pair j < i is
separated by the middle of exactly one block, and relative to that middle both factors are exponentials of
sums <= 0 over the tokens between, summed for that block alone. Nothing overflows, nothing cancels, and no
causal mask is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sb_edge.reference.ops.naive import accumulation_dtype, initial_state

CHUNK = 64


def _through(log_a: Tensor) -> Tensor:
    """Sum of log gates from a block's start to each row, own row included: [..., C, d] -> [..., C, d]."""
    return log_a.cumsum(-2)


def _beyond(log_a: Tensor) -> Tensor:
    """Sum of log gates from each row to its block's end, own row left out: [..., C, d] -> [..., C, d]."""
    later = functional.pad(log_a[..., 1:, :], (0, 0, 0, 1))
    return later.flip(-2).cumsum(-2).flip(-2)


def _across_middle(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, half: int) -> Tensor:
    """What the right half of every block of 2 * half rows reads from its left half.

    q: [..., C, G, d]; k, log_a: [..., C, d]; v: [..., C, dv] -> [..., C, G, dv], zero in the left halves.
    """
    k_left = k.unflatten(-2, (-1, 2, half))[..., 0, :, :]  # [..., C / 2half, half, d]
    v_left = v.unflatten(-2, (-1, 2, half))[..., 0, :, :]
    q_right = q.unflatten(-3, (-1, 2, half))[..., 1, :, :, :]  # [..., C / 2half, half, G, d]
    log_a_left, log_a_right = log_a.unflatten(-2, (-1, 2, half)).unbind(-3)
    q_right = (q_right * _through(log_a_right).exp().unsqueeze(-2)).flatten(-3, -2)
    k_left = k_left * _beyond(log_a_left).exp()
    read = ((q_right @ k_left.mT) @ v_left).unflatten(-2, (half, -1))
    return torch.stack((torch.zeros_like(read), read), dim=-4).flatten(-5, -3)


def _within_chunks(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor) -> Tensor:
    """Causal attention inside each chunk, no state: q [..., C, G, d], C a power of two -> [..., C, G, dv]."""
    own = (q * k.unsqueeze(-2)).sum(-1, keepdim=True) * v.unsqueeze(-2)
    half = 1
    while half < k.shape[-2]:
        own = own + _across_middle(q, k, v, log_a, half)
        half *= 2
    return own


def states(written: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk, [B, N, Hkv, d, dv], and the state after the last one, [B, Hkv, d, dv].

    Args:
        written: [B, N, Hkv, d, dv], what each chunk adds.
        decay: [B, N, Hkv, d, 1], what it leaves of the state before it.
        state: [B, Hkv, d, dv].
    """
    before = []
    for new, kept in zip(written.unbind(1), decay.unbind(1), strict=True):
        before.append(state)
        state = kept * state + new
    return torch.stack(before, dim=1), state


def split(x: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """[B, T, Hkv, ...] -> [B, N, Hkv, C, ...]; rows of zeros write and forget nothing."""
    padded = functional.pad(x.to(dtype), (0, 0) * (x.dim() - 2) + (0, -x.shape[1] % chunk))
    return padded.unflatten(1, (-1, chunk)).transpose(2, 3)


def join(o: Tensor, length: int) -> Tensor:
    """[B, N, Hkv, C, G, dv] -> [B, T, H, dv]: the inverse of `split` for outputs."""
    return o.transpose(2, 3).flatten(1, 2)[:, :length].flatten(2, 3)


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_a: Tensor,
    scale: float,
    state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The operator of `naive.gated_linear_attention`, same arguments, shapes and results; differentiable.

    Args:
        chunk: rows a chunk, a power of two; a shorter input takes a shorter one.
    """
    dtype = accumulation_dtype(q.dtype)
    length, kv_heads = k.shape[1:3]
    chunk = min(chunk, 1 << (length - 1).bit_length())
    queries = split((q.to(dtype) * scale).unflatten(2, (kv_heads, -1)), chunk, dtype)
    keys, values, gates = (split(x, chunk, dtype) for x in (k, v, log_a))
    written = (keys * _beyond(gates).exp()).mT @ values  # [B, N, Hkv, d, dv]
    decay = gates.sum(-2).exp().unsqueeze(-1)  # [B, N, Hkv, d, 1]
    before, after = states(written, decay, initial_state(k, v, state, dtype))
    decayed = queries * _through(gates).exp().unsqueeze(-2)
    inherited = (decayed.flatten(-3, -2) @ before).unflatten(-2, (chunk, -1))
    o = _within_chunks(queries, keys, values, gates) + inherited  # [B, N, Hkv, C, G, dv]
    return join(o, length).to(q.dtype), after
