"""Gated linear attention: naive against the closed form, chunk against naive."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sb_edge.reference.ops import chunk, naive
from sb_edge.reference.ops import training as direct
from sb_edge.util.logits import nmse
from sb_edge.util.tolerances import CHUNK_F32, CHUNK_F64, GRADIENT_F64

HEAD_DIM, VALUE_DIM, KV_HEADS, BATCH = 60, 52, 2, 2
SCALE = HEAD_DIM**-0.5
GATES = ("usual", "open", "quick", "nearly closed", "closing at times", "shut at times")
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 200)


def inputs(length: int, groups: int, gate: str, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """q, k, v, log_a and a starting state, all float64, drawn from a seed."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    keys = (BATCH, length, KV_HEADS, HEAD_DIM)
    share = torch.rand(keys, generator=draw, dtype=torch.float64)
    log_a = {
        "usual": torch.nn.functional.logsigmoid(normal(*keys)) / 16,
        "open": torch.zeros(keys, dtype=torch.float64),
        "quick": -2.0 * share,
        "nearly closed": -50 * share,
        "closing at times": torch.where(share < 0.3, -50.0, -0.01 * share),
        "shut at times": torch.where(share < 0.1, -torch.inf, -share),
    }[gate]
    q = normal(BATCH, length, groups * KV_HEADS, HEAD_DIM).relu()
    k, v = normal(*keys).relu(), normal(BATCH, length, KV_HEADS, VALUE_DIM)
    return [q, k, v, log_a], normal(BATCH, KV_HEADS, HEAD_DIM, VALUE_DIM)


def distance(expected: Tensor, found: Tensor) -> float:
    return nmse(expected.reshape(1, -1).numpy(), found.double().reshape(1, -1).numpy())


def repeated_heads(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, scale: float, state: Tensor) -> Tensor:
    """The published form: k, v, gate and state repeated to H heads, and o_i as a sum over all j <= i."""
    groups = q.shape[2] // k.shape[2]
    k, v, log_a = (x.repeat_interleave(groups, dim=2) for x in (k, v, log_a))
    state = state.repeat_interleave(groups, dim=1)
    rows = []
    for i in range(q.shape[1]):
        row = torch.einsum("bhc,bhcv->bhv", q[:, i] * log_a[:, : i + 1].sum(1).exp(), state)
        for j in range(i + 1):
            weight = (q[:, i] * k[:, j] * log_a[:, j + 1 : i + 1].sum(1).exp()).sum(-1, keepdim=True)
            row = row + weight * v[:, j]
        rows.append(scale * row)
    return torch.stack(rows, dim=1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory from torch.empty holds NaN, so reading before writing shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_naive_is_the_closed_form(gate: str, groups: int) -> None:
    tensors, state = inputs(17, groups, gate)
    o, _ = naive.gated_linear_attention(*tensors, SCALE, state)
    assert distance(repeated_heads(*tensors, SCALE, state), o) <= CHUNK_F64.nmse


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("groups", [1, 2, 7])
@pytest.mark.parametrize(
    ("dtype", "ceiling"), [(torch.float64, CHUNK_F64.nmse), (torch.float32, CHUNK_F32.nmse)]
)
@pytest.mark.parametrize("form", [chunk, direct])
def test_fast_forms_are_naive(
    poisoned_memory: None,
    form: ModuleType,
    gate: str,
    length: int,
    groups: int,
    dtype: torch.dtype,
    ceiling: float,
) -> None:
    tensors, state = inputs(length, groups, gate, seed=length)
    rounded = [x.to(dtype) for x in (*tensors, state)]
    exact = [x.double() for x in rounded]
    expected, expected_state = naive.gated_linear_attention(*exact[:4], SCALE, exact[4])
    o, last = form.gated_linear_attention(*rounded[:4], SCALE, rounded[4])
    assert o.dtype == last.dtype == dtype
    assert distance(expected, o) <= ceiling
    assert distance(expected_state, last) <= ceiling


@pytest.mark.parametrize("size", [1, 2, 16, 32, 256])
def test_any_chunk_size_gives_the_same(size: int) -> None:
    tensors, state = inputs(65, 2, "closing at times")
    expected, _ = naive.gated_linear_attention(*tensors, SCALE, state)
    o, _ = chunk.gated_linear_attention(*tensors, SCALE, state, chunk=size)
    assert distance(expected, o) <= CHUNK_F64.nmse


@pytest.mark.parametrize("module", [naive, chunk, direct])
def test_the_state_carries_on(module: object) -> None:
    tensors, _ = inputs(65, 2, "usual")
    operator = module.gated_linear_attention  # type: ignore[attr-defined]
    whole, last = operator(*tensors, SCALE)
    first, state = operator(*(x[:, :23] for x in tensors), SCALE)
    kept = state.clone()
    second, state_after = operator(*(x[:, 23:] for x in tensors), SCALE, state)
    assert distance(whole, torch.cat((first, second), dim=1)) <= CHUNK_F64.nmse
    assert distance(last, state_after) <= CHUNK_F64.nmse
    assert torch.equal(state, kept)


@pytest.mark.parametrize("module", [naive, chunk, direct])
def test_bfloat16_keeps_a_float32_state(module: object) -> None:
    tensors, state = inputs(17, 2, "usual")
    o, last = module.gated_linear_attention(  # type: ignore[attr-defined]
        *(x.bfloat16() for x in tensors), SCALE, state.float()
    )
    assert o.dtype == torch.bfloat16
    assert last.dtype == torch.float32


def test_gradients_are_right() -> None:
    draw = torch.Generator().manual_seed(1)
    shapes = ((1, 7, 2, 3), (1, 7, 1, 3), (1, 7, 1, 2), (1, 7, 1, 3), (1, 1, 3, 2))
    q, k, v, log_a, state = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    leaves = [x.requires_grad_() for x in (q, k, v, -log_a.abs(), state)]

    def operator(*args: Tensor) -> tuple[Tensor, Tensor]:
        return chunk.gated_linear_attention(*args[:4], 0.5, args[4], chunk=4)

    assert torch.autograd.gradcheck(operator, leaves)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", [chunk, direct])
def test_gradients_of_fast_forms_are_those_of_naive(form: ModuleType, gate: str) -> None:
    found = []
    for module in (naive, form):
        tensors, state = inputs(65, 2, gate)
        leaves = [x.requires_grad_() for x in (*tensors, state)]
        o, last = module.gated_linear_attention(*leaves[:4], SCALE, leaves[4])
        (o.sin().sum() + last.cos().sum()).backward()
        found.append([x.grad for x in leaves])
    for expected, grad in zip(*found, strict=True):
        assert expected is not None
        assert grad is not None
        assert distance(expected, grad) <= GRADIENT_F64.nmse
