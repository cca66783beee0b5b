"""Distillation losses: layer output error and KL divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 512
"""Rows whose logits are held at once: with a vocabulary of 150,000 they take 300 MB a copy."""


def squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """sum((x - y)^2) and sum(y^2), scalars in float32 at least; their ratio is 1 for an output of zeros.

    Args:
        output, target: of one shape.
    """
    wide = torch.promote_types(target.dtype, torch.float32)
    y = target.to(wide)
    return (output.to(wide) - y).square().sum(), y.square().sum()


def divergence(student: Tensor, teacher: Tensor, head: Tensor, weights: Tensor, rows: int = ROWS) -> Tensor:
    """Weighted sum over positions of KL(teacher || student), nats; differentiable in `student`.

    The gradient of a row's divergence with respect to its logits is softmax(student) - softmax(teacher). It
    is taken along with the value, some rows at a time, so that no logits are kept.

    Args:
        student, teacher: [..., hidden], after the final norm.
        head: [vocab, hidden] of both, not trained.
        weights: [...]; positions of weight 0 cost nothing.
        rows: see `ROWS`.
    """
    counted = weights.flatten().nonzero()[:, 0]
    value: Tensor = _Divergence.apply(
        student.flatten(0, -2)[counted],
        teacher.flatten(0, -2)[counted],
        head,
        weights.flatten()[counted],
        rows,
    )
    return value


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, head: Tensor, weights: Tensor, rows: int
    ) -> Tensor:
        wide = torch.promote_types(student.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=student.device)
        gradient = torch.empty_like(student)
        for at in range(0, len(student), rows):
            part = slice(at, at + rows)
            weight = weights[part, None].to(wide)
            found = functional.linear(student[part], head).to(wide).log_softmax(-1)
            wanted = functional.linear(teacher[part], head).to(wide).log_softmax(-1)
            p = wanted.exp()
            total += (weight * p * (wanted - found)).sum()
            if ctx.needs_input_grad[0]:
                slope = found.exp_().sub_(p).mul_(weight)
                gradient[part] = slope.to(student.dtype) @ head.to(student.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None
