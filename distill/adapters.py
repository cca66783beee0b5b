"""Low-rank adapters: y = W x + B (A x), B zero at the start (LoRA, arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sb_edge.reference.spiking import Projection


class AdaptedProjection(Projection):
    """A frozen projection with a trained low-rank addition, of the same counts where it is coded.

    Attributes:
        adapter_in: A [rank, in].
        adapter_out: B [out, rank].
    """

    def __init__(self, projection: Projection, rank: int, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = projection.in_features, projection.out_features
        self.weight, self.bias = projection.weight, projection.bias
        start = torch.randn(rank, self.in_features, generator=generator) * self.in_features**-0.5
        self.adapter_in = nn.Parameter(start.to(self.weight))
        self.adapter_out = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(W + B A) x + bias, x: [..., in] -> [..., out]."""
        adapted = functional.linear(functional.linear(x, self.adapter_in), self.adapter_out)
        return super().product(x, bias) + adapted

    def merged(self) -> Tensor:
        """[out, in]: the weight that does the same without an adapter."""
        return self.weight + self.adapter_out @ self.adapter_in


def adapt(model: nn.Module, rank: int, seed: int, *, keep_attention: bool = False) -> list[str]:
    """Put adapters around every projection whose weight is frozen and that has none yet.

    Args:
        model: it is changed.
        rank: Maximum LoRA rank.
        seed: of their first values.
        keep_attention: leave out the attention's projections.

    Returns:
        The names of the modules that got one.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is Projection
        and not module.weight.requires_grad
        and not (keep_attention and ".attn." in name)
    ]
    for name, module in found:
        parent, _, child = name.rpartition(".")
        fitting = min(rank, module.in_features, module.out_features)
        setattr(model.get_submodule(parent), child, AdaptedProjection(module, fitting, generator))
    return [name for name, _ in found]
