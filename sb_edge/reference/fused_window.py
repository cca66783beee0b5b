"""Windowed attention through PyTorch's fused kernel: for training, where the reference's own form is slow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sb_edge.reference.layers import query_blocks
from sb_edge.reference.ops.naive import accumulation_dtype


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """`layers.windowed_attention`: same arguments, shapes and, but for rounding, results; differentiable.

    Args:
        q: [B, T, H, d], the last T positions.
        k, v: [B, P + T, Hkv, d], those positions and the P before them.
        window: keys that a query sees, its own included.

    Returns:
        [B, T, H, d].
    """
    if q.shape[1] == 1:
        return _of_one_query(q, k[:, -window:], v[:, -window:])
    if q.device.type == "cpu":
        # On a CPU the kernel is three times as fast in float32 as in bfloat16, which autocast would choose.
        with torch.autocast("cpu", enabled=False):
            wide = accumulation_dtype(q.dtype)
            return _windowed_attention(q.to(wide), k.to(wide), v.to(wide), window).to(q.dtype)
    return _windowed_attention(q, k, v, window)


def _of_one_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The heads of a group as rows of one product, so that nothing is repeated: for sampling."""
    keys, values = k.transpose(1, 2), v.transpose(1, 2)  # [B, Hkv, P + 1, d]
    queries = q.view(q.shape[0], k.shape[2], -1, q.shape[3])
    return functional.scaled_dot_product_attention(queries, keys, values).view(q.shape)


def _windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    groups = q.shape[2] // k.shape[2]
    queries = q.transpose(1, 2)  # [B, H, T, d]
    keys, values = (x.transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k, v))
    if q.shape[1] == k.shape[1] <= window:
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2)
    outputs = []
    for block, seen, mask in query_blocks(q, k, window):
        outputs.append(
            functional.scaled_dot_product_attention(
                queries[:, :, block], keys[:, :, seen], values[:, :, seen], attn_mask=mask
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)
