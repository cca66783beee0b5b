"""Mixture of experts, plainly, as the technical report describes it (arXiv 2509.05276, section 3).

p = softmax(W_r x);  y = sum over the k likeliest experts of p_e E_e(x), plus the shared experts. The report
is silent on whether p is rescaled over the chosen experts, and on losses that balance them. Here p is used as
it is, which is what makes the scaling of `sb_edge.convert.upcycle` come out even, and there are none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.reference.layers import SwiGLU
from sb_edge.reference.ops.naive import accumulation_dtype


class StackedWeight(nn.Module):
    """One projection of all experts: weight [N, out, in]."""

    def __init__(self, count: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width_out, width_in))


class Experts(nn.Module):
    """N SwiGLUs."""

    def __init__(self, count: int, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = StackedWeight(count, hidden, width)
        self.up_proj = StackedWeight(count, hidden, width)
        self.down_proj = StackedWeight(count, width, hidden)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """x: [n, hidden] -> [n, hidden] through one of them."""
        gate = functional.silu(functional.linear(x, self.gate_proj.weight[expert]))
        up = functional.linear(x, self.up_proj.weight[expert])
        return functional.linear(gate * up, self.down_proj.weight[expert])


class MixtureOfExperts(nn.Module):
    """Routed experts, `num_experts_per_tok` a token, and shared ones that see every token."""

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        self.active = config.num_experts_per_tok
        hidden, width = config.hidden_size, config.intermediate_size
        self.router = nn.Linear(hidden, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, hidden, width)
        self.shared_experts = SwiGLU(hidden, config.num_shared_experts * width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, hidden] -> [B, T, hidden]."""
        tokens = x.flatten(0, -2)
        logits = self.router(tokens).to(accumulation_dtype(x.dtype))
        shares, chosen = logits.softmax(-1).topk(self.active, dim=-1)  # [n, k]
        y = self.shared_experts(tokens)
        for expert in chosen.unique().tolist():
            rows, places = (chosen == expert).nonzero(as_tuple=True)
            share = shares[rows, places].unsqueeze(-1).to(x.dtype)
            y = y.index_add(0, rows, share * self.experts(tokens[rows], expert))
        return y.view_as(x)
