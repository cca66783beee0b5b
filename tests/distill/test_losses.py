"""Losses, adapters, the fused attention and the order of the data, each against its plain form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from sb_edge.distill.adapters import AdaptedProjection
from sb_edge.distill.losses import divergence, squared_error
from sb_edge.distill.text.order import HELD_OUT_LENGTH, DataOrder, split_text
from sb_edge.reference import fused_window as fused
from sb_edge.reference import layers
from sb_edge.reference.spiking import Projection
from sb_edge.util.errors import TrainingError


def test_divergence_and_its_gradient_are_those_of_the_plain_formula() -> None:
    """Weighted, position by position; one of weight 0 counts for nothing."""
    torch.manual_seed(0)
    student = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    teacher, head = torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)
    weights = torch.rand(2, 7, dtype=torch.float64)
    weights[0, 3] = 0
    found = divergence(student, teacher, head, weights, rows=4)
    (gradient,) = torch.autograd.grad(3 * found, student)
    each = functional.kl_div(
        (student @ head.mT).log_softmax(-1),
        (teacher @ head.mT).log_softmax(-1),
        log_target=True,
        reduction="none",
    )
    plain = (weights * each.sum(-1)).sum()
    (expected,) = torch.autograd.grad(3 * plain, student)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient, expected)
    assert float(divergence(teacher, teacher, head, weights)) == pytest.approx(0, abs=1e-12)


def test_the_error_of_zeros_is_the_target_s_size() -> None:
    target = torch.randn(3, 5)
    error, size = squared_error(torch.zeros_like(target), target)
    assert float(error) == float(size) == pytest.approx(float((target**2).sum()))
    assert float(squared_error(target, target)[0]) == 0


@pytest.mark.parametrize(
    ("past", "length", "window"), [(0, 63, 4096), (0, 63, 10), (5, 13, 7), (40, 1, 4096)]
)
def test_fused_attention_is_the_reference_s(past: int, length: int, window: int) -> None:
    torch.manual_seed(1)
    q = torch.randn(2, length, 6, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, past + length, 3, 8, dtype=torch.float64)
    expected = layers.windowed_attention(q, k, v, window)
    torch.testing.assert_close(fused.windowed_attention(q, k, v, window), expected)


def test_fused_attention_over_several_blocks_of_queries() -> None:
    torch.manual_seed(2)
    length = layers.QUERY_BLOCK + 65
    q = torch.randn(1, length, 2, 4, dtype=torch.float64)
    k, v = torch.randn(2, 1, length, 1, 4, dtype=torch.float64)
    expected = layers.windowed_attention(q, k, v, 100)
    torch.testing.assert_close(fused.windowed_attention(q, k, v, 100), expected)


def test_a_merged_adapter_does_what_the_adapter_does() -> None:
    projection = Projection(10, 6, bias=True).requires_grad_(False).double()
    adapted = AdaptedProjection(projection, 3, torch.Generator().manual_seed(0))
    x = torch.randn(4, 10, dtype=torch.float64)
    torch.testing.assert_close(adapted(x), projection(x))
    torch.nn.init.normal_(adapted.adapter_out)
    torch.testing.assert_close(adapted(x), functional.linear(x, adapted.merged(), projection.bias))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"adapter_in", "adapter_out"}


def test_every_window_comes_once_a_round_and_rounds_differ() -> None:
    tokens = np.arange(1000, dtype=np.uint32)
    order = DataOrder(tokens, seed=3, stage=0, phase=0, length=10)
    first, second = order.batch(0, order.windows), order.batch(1, order.windows)
    for turn in (first, second):
        starts = np.sort(turn[:, 0])
        assert (np.diff(starts) == 10).all()
        np.testing.assert_array_equal(turn, turn[:, :1] + np.arange(10))
    assert (first != second).any()
    again = DataOrder(tokens, seed=3, stage=0, phase=0, length=10)
    np.testing.assert_array_equal(again.batch(7, 5), order.batch(7, 5))
    other = DataOrder(tokens, seed=4, stage=0, phase=0, length=10)
    assert (other.batch(7, 5) != order.batch(7, 5)).any()


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(TrainingError, match="found 19 tokens, expected at least 20"):
        DataOrder(np.zeros(19, np.uint32), seed=0, stage=0, phase=0, length=10)


def test_held_out_sequences_are_spread_and_never_trained_on() -> None:
    size = 100 * HELD_OUT_LENGTH + 77
    trained, held_out = split_text(size, 4 * HELD_OUT_LENGTH)
    assert held_out.shape == (4, HELD_OUT_LENGTH)
    assert (np.diff(held_out) == 1).all()
    assert (np.diff(held_out[:, 0]) == 25 * HELD_OUT_LENGTH).all()
    assert sorted([*trained, *held_out.ravel()]) == list(range(size))
    assert split_text(size, 10**9)[1].shape[0] == 5
    assert split_text(19 * HELD_OUT_LENGTH, 10**9)[1].size == 0
