"""What a stage trains, and how a batch becomes gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sb_edge.distill.adapters import adapt
from sb_edge.distill.base import gla_layers_of
from sb_edge.distill.losses import divergence, squared_error
from sb_edge.distill.parallel import World, without_sync
from sb_edge.distill.settings import StageSettings, TrainingSettings
from sb_edge.distill.student import trained_parameters
from sb_edge.reference.layers import GatedLinearAttention, Operator
from sb_edge.reference.network import SpikingBrain
from sb_edge.reference.ops import training as direct

RECOMPUTE_BEYOND = 2048
"""Longer sequences' activations are computed again in the backward pass: 8192 tokens of a 135M model would
take 17 GB."""

GATE_STARTS = (-2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Gate logits: states halve in 5, 16, 87, 600, 4500 and 33,000 tokens."""

Group = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class Batch:
    """Sequences of a step, or a part of them.

    Attributes:
        tokens: [b, T].
        weights: [b, T], how much the prediction after each token counts.
    """

    tokens: Tensor
    weights: Tensor

    def parts(self, tokens: int) -> list[Batch]:
        """Split into parts of at most `tokens` tokens, but at least one sequence."""
        size = max(1, tokens // self.tokens.shape[1])
        split = zip(self.tokens.split(size), self.weights.split(size), strict=True)
        return [Batch(*part) for part in split]


class Stage(ABC):
    """Gradients of a step, in parts of any size.

    A loss is a ratio, of an error and of the size of its target. A mean of ratios depends on the parts, so
    both sums are taken over the whole step, and the gradients are divided at its end.

    Attributes:
        curves: names of the losses that `finish` returns.
        groups: for each loss, the parameters that it trains, by name.
    """

    curves: list[str]
    groups: list[Group]

    def __init__(self, world: World, bf16: bool) -> None:
        self._world = world
        self._bf16 = bf16
        self._sums: Tensor | None = None

    def accumulate(self, part: Batch, *, sync: bool) -> None:
        """Add a part of a step.

        Args:
            part: on this process's device.
            sync: the last part: gradients are averaged over all processes.
        """
        sums = self._sums_of(part, train=True, sync=sync)
        self._sums = sums if self._sums is None else self._sums + sums

    def finish(self) -> Tensor:
        """Leave the step's gradients in the parameters.

        Returns:
            Losses over all processes [len(curves)], float32.
        """
        if self._sums is None:
            raise ValueError("a step without a part")
        errors, sizes = self._world.mean(self._sums)
        self._sums = None
        for group, size in zip(self.groups, sizes, strict=True):
            for parameter in group.values():
                if parameter.grad is not None:
                    parameter.grad /= size
        return errors / sizes

    def measure(self, parts: Iterable[Batch]) -> Tensor:
        """Losses [len(curves)] without gradients, float32."""
        with torch.no_grad():
            sums = [self._sums_of(part, train=False, sync=True) for part in parts]
        errors, sizes = torch.stack(sums).sum(0)
        return errors / sizes

    @abstractmethod
    def _sums_of(self, part: Batch, *, train: bool, sync: bool) -> Tensor:
        """Errors and sizes of their targets [2, len(curves)], float32; add the errors' gradients to train."""

    @abstractmethod
    def locate(self, tokens: Tensor) -> str | None:
        """Where the first value appears that is not finite: "layer 4"; None if all are."""

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._bf16)


class LayerStage(Stage):
    """Each GLA layer alone learns its attention layer's output from the base's own hidden states."""

    def __init__(self, base: SpikingBrain, student: SpikingBrain, world: World, bf16: bool) -> None:
        super().__init__(world, bf16)
        self._base = base
        layers = gla_layers_of(student.config)
        attention: dict[int, Any] = {layer: student.model.layers[layer].attn for layer in layers}
        names = {id(parameter): name for name, parameter in student.named_parameters()}
        self.curves = [f"layer {layer}" for layer in layers]
        self.groups = [{names[id(p)]: p for p in attention[layer].parameters()} for layer in layers]
        self._attention = attention
        self._students = {layer: world.wrap(module) for layer, module in attention.items()}

    def calibrate(self, tokens: Tensor) -> None:
        """Start every head's gates where its layer's error is least, out of `GATE_STARTS`.

        Some layers look back a few tokens and others all of the text; training moves a gate slowly.

        Args:
            tokens: [b, T], the same in all processes.
        """

        def choose(layer: int, x: Tensor, y: Tensor) -> None:
            attention = self._attention[layer]
            for gates in attention.gk_proj[1].bias.split(attention.head_dim):
                errors = []
                for start in GATE_STARTS:
                    gates.fill_(start)
                    with self._autocast():
                        output, _ = attention(x, (), 0)
                    errors.append(float(squared_error(output, y)[0]))
                gates.fill_(GATE_STARTS[errors.index(min(errors))])

        self._through_base(tokens, choose)

    def _sums_of(self, part: Batch, *, train: bool, sync: bool) -> Tensor:
        sums: list[Tensor] = []

        def learn(layer: int, x: Tensor, y: Tensor) -> None:
            module = self._students[layer]
            with without_sync(module, sync), torch.set_grad_enabled(train):
                with self._autocast():
                    output, _ = module(x, (), 0)
                error, size = squared_error(output, y)
                if train:
                    error.backward()
            sums.append(torch.stack((error.detach(), size)))

        self._through_base(part.tokens, learn)
        return torch.stack(sums, dim=1).float()

    def locate(self, tokens: Tensor) -> str | None:
        bad: list[int] = []

        def check(layer: int, x: Tensor, y: Tensor) -> None:
            with self._autocast():
                output, _ = self._students[layer](x, (), 0)
            if not bool(squared_error(output, y)[0].isfinite()):
                bad.append(layer)

        self._through_base(tokens, check)
        return f"layer {bad[0]}" if bad else None

    @torch.no_grad()
    def _through_base(self, tokens: Tensor, meet: Callable[[int, Tensor, Tensor], None]) -> None:
        """Run the base up to the last GLA layer; show each one's normed input and its attention's output."""
        last = max(self._students)
        x = self._base.model.embeddings(tokens)
        blocks: Iterable[Any] = self._base.model.layers
        for layer, block in enumerate(blocks):
            with self._autocast():
                normed = block.attn_norm(x)
                y, _ = block.attn(normed, (), 0)
            if layer in self._students:
                # Outside: autocast must not reach the backward pass.
                meet(layer, normed, y)
            if layer == last:
                break
            with self._autocast():
                x = x + y
                x = x + block.mlp(block.mlp_norm(x))


class WholeStage(Stage):
    """All GLA layers and the adapters learn the base's predictions together."""

    def __init__(self, base: SpikingBrain, student: SpikingBrain, world: World, bf16: bool) -> None:
        super().__init__(world, bf16)
        self._base, self._student = base, student
        self.curves = ["KL"]
        self.groups = [trained_parameters(student)]
        self._hidden = world.wrap(_Hidden(student))

    def _sums_of(self, part: Batch, *, train: bool, sync: bool) -> Tensor:
        with torch.no_grad(), self._autocast():
            wanted = self._base.hidden(part.tokens)
        with without_sync(self._hidden, sync):
            with self._autocast():
                loss = divergence(self._hidden(part.tokens), wanted, self._student.head, part.weights)
            if train:
                loss.backward()
        return torch.stack((loss.detach(), part.weights.sum()))[:, None].float()

    @torch.no_grad()
    def locate(self, tokens: Tensor) -> str | None:
        bad: list[str] = []

        def check(name: str, x: Tensor) -> None:
            if not bool(x.isfinite().all()):
                bad.append(name.replace("l_out-", "layer "))

        with self._autocast():
            self._student.hidden(tokens, on_tensor=check)
        return bad[0] if bad else None


class _Hidden(nn.Module):
    """`SpikingBrain.hidden` as a module's forward pass, activations kept or computed again."""

    def __init__(self, student: SpikingBrain) -> None:
        super().__init__()
        self.student = student

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [b, T] -> [b, T, hidden]."""
        if tokens.shape[1] <= RECOMPUTE_BEYOND:
            return self.student.hidden(tokens)
        x = self.student.model.embeddings(tokens)
        for block in self.student.model.layers:
            x, _ = checkpoint(block, x, (), 0, use_reentrant=False)
        normed: Tensor = self.student.model.norm(x)
        return normed


def make_stage(
    which: StageSettings, settings: TrainingSettings, base: SpikingBrain, student: SpikingBrain, world: World
) -> Stage:
    """A stage; from the second on the student has adapters."""
    if which.name == "layers":
        return LayerStage(base, student, world, settings.bf16)
    adapt(student, settings.adapter_rank, settings.seed, keep_attention=settings.keep_attention)
    return WholeStage(base, student, world, settings.bf16)


def use_training_operator(model: SpikingBrain) -> None:
    """Give GLA layers the form for training, its products and state in float32 under autocast, too."""
    for module in model.modules():
        if isinstance(module, GatedLinearAttention):
            module.operator = _without_autocast(direct.gated_linear_attention)


def _without_autocast(operator: Operator) -> Operator:
    def exact(
        q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, scale: float, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(q.device.type, enabled=False):
            return operator(q, k, v, log_a, scale, state)

    return exact
