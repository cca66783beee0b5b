"""Gated linear attention, token by token: the oracle for every faster form.

The public release repeats k, v and the gate to H heads and keeps H states. All heads of a group hold the same
state, so this keeps Hkv of them (arXiv 2509.05276, section 2; the gate follows GLA, arXiv 2312.06635, eq. 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of states, norms and softmax: float64 for float64 inputs, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def initial_state(k: Tensor, v: Tensor, state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The state before the first token, [B, Hkv, d, dv] in `dtype`; zeros for None."""
    if state is None:
        return k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3], dtype=dtype)
    return state.to(dtype)


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, scale: float, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = diag(a_t) S_{t-1} + k_t^T v_t;  o_t[h] = scale * q_t[h] S_t[h // G].

    Args:
        q: [B, T, H, d], T >= 1, H = G * Hkv.
        k: [B, T, Hkv, d].
        v: [B, T, Hkv, dv].
        log_a: [B, T, Hkv, d], log of the gate, <= 0; -inf forgets everything.
        scale: factor on q, d**-0.5 in SpikingBrain.
        state: [B, Hkv, d, dv], float32 or float64; None for zeros. It is not changed.

    Returns:
        o: [B, T, H, dv] in q's dtype, and the state after the last token in the accumulation dtype.
    """
    dtype = accumulation_dtype(q.dtype)
    kv_heads = k.shape[2]
    queries = (q.to(dtype) * scale).unflatten(2, (kv_heads, -1))  # [B, T, Hkv, G, d]
    k, v, decay = k.to(dtype), v.to(dtype), log_a.to(dtype).exp()
    state = initial_state(k, v, state, dtype)
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(queries[:, t] @ state)  # [B, Hkv, G, dv]
    return torch.stack(outputs, dim=1).flatten(2, 3).to(q.dtype), state
