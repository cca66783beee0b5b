"""Projections with coded inputs: y = threshold * (W s) + b, s the counts of `sb_edge.arch.coding`.

Which projections are coded, and with which k, is data: `SpikingBrain.set_spikes` takes a `SpikePlan`.
Gradients are straight-through: those of the same computation on uncoded values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sb_edge.arch.coding import spike_counts
from sb_edge.arch.spike_plan import coded_together

MODULES = {
    "attn_q": "attn.q_proj",
    "attn_k": "attn.k_proj",
    "attn_v": "attn.v_proj",
    "ssm_f": "attn.gk_proj",
    "attn_output": "attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Where a block has the projections that a plan names."""

Site = tuple[str, ...]
"""Projections of one input with the same k, in the order of `PROJECTIONS`: they share one coded tensor."""

OnCounts = Callable[[Site, Tensor], None]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0], None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, exactly, with the gradient of x; both of one shape."""
    passed: Tensor = _StraightThrough.apply(x, value.detach())
    return passed


class SharedInput:
    """The input of several projections, coded once for those that have the same k."""

    def __init__(self, x: Tensor) -> None:
        """x: [..., n]."""
        self.x = x
        self._coded: dict[float, tuple[Tensor, Tensor]] = {}
        self._spikes: dict[tuple[float, torch.dtype], Tensor] = {}

    def coded(self, k: float) -> tuple[Tensor, Tensor]:
        """Counts, int32 [..., n], and thresholds, float32 [..., 1]."""
        if k not in self._coded:
            self._coded[k] = spike_counts(self.x.detach(), k)
        return self._coded[k]

    def spikes(self, k: float, dtype: torch.dtype) -> Tensor:
        """Counts in the type of weights, [..., n], with the gradient of x / threshold."""
        if (k, dtype) not in self._spikes:
            counts, threshold = self.coded(k)
            self._spikes[k, dtype] = straight_through(self.x / threshold, counts.to(dtype))
        return self._spikes[k, dtype]


class Projection(nn.Linear):
    """A linear layer; with a `spike_k` that is not 0, one of spike counts."""

    spike_k = 0.0

    def forward(self, x: Tensor | SharedInput) -> Tensor:
        """x: [..., in] -> [..., out] in the weights' dtype."""
        x = _shared(x)
        if not self.spike_k:
            return self.product(x.x, self.bias)
        y = self.product(x.spikes(self.spike_k, self.weight.dtype))
        _, threshold = x.coded(self.spike_k)
        y = (y * threshold).to(y.dtype)  # bfloat16 under autocast
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + bias, x: [..., in] -> [..., out]."""
        return functional.linear(x, self.weight, bias)


def round_to_counts(x: Tensor, k: float) -> Tensor:
    """x: [..., n] -> the values that its counts stand for, counts * threshold, in the same dtype."""
    counts, threshold = spike_counts(x.detach(), k)
    return straight_through(x, (counts * threshold).to(x.dtype))


def projections(block: nn.Module) -> dict[str, Projection]:
    """A block's projections by their names in a plan; `ssm_f` is the merged gate or the first of the pair."""
    modules = dict(block.named_modules())
    found = {name: modules.get(f"{path}.0", modules.get(path)) for name, path in MODULES.items()}
    return {name: module for name, module in found.items() if isinstance(module, Projection)}


def sites(block: nn.Module) -> tuple[Site, ...]:
    """A block's coded tensors, each by the projections that share it."""
    return coded_together({name: module.spike_k for name, module in projections(block).items()})


@contextmanager
def watch_counts(block: nn.Module, on_counts: OnCounts) -> Iterator[None]:
    """Hand over the counts, int32 [B, T, n], of each coded input of a block that runs meanwhile."""
    modules = projections(block)
    with ExitStack() as stack:
        for site in sites(block):
            hook = modules[site[0]].register_forward_hook(_reporting(site, on_counts))
            stack.callback(hook.remove)
        yield


def _reporting(site: Site, on_counts: OnCounts) -> Callable[[Any, tuple[Any, ...], Tensor], None]:
    def hook(projection: Projection, inputs: tuple[Tensor | SharedInput], _output: Tensor) -> None:
        counts, _ = _shared(inputs[0]).coded(projection.spike_k)
        on_counts(site, counts)

    return hook


def _shared(x: Tensor | SharedInput) -> SharedInput:
    return x if isinstance(x, SharedInput) else SharedInput(x)
