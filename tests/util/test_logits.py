"""NMSE, KL, top-1 and the worst position on arrays made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sb_edge.util.errors import ParityError
from sb_edge.util.logits import compare_logits, nmse

REFERENCE = np.array([[3.0, 4.0], [0.0, 5.0], [6.0, 8.0]])


def test_equal_logits_agree_fully() -> None:
    found = compare_logits(REFERENCE, REFERENCE.copy())
    assert (found.nmse, found.kl, found.top1, found.worst_position, found.worst_nmse) == (0, 0, 1, 0, 0)


def test_nmse_is_the_squared_error_over_the_squared_reference() -> None:
    other = REFERENCE + np.array([[0, 0], [1, 0], [0, 3]])
    assert nmse(REFERENCE, other) == pytest.approx(10 / 150)
    found = compare_logits(REFERENCE, other)
    assert found.nmse == pytest.approx(10 / 150)
    assert found.worst_position == 2
    assert found.worst_nmse == pytest.approx(9 / 100)
    assert found.top1 == 1


def test_kl_is_the_mean_over_positions_in_nats() -> None:
    p, q = np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    expected = (0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2
    # Softmax does not see a constant added to a row.
    assert compare_logits(np.log(p), np.log(q) + 7).kl == pytest.approx(expected)


def test_kl_survives_logits_that_overflow_exp() -> None:
    found = compare_logits(np.array([[2000.0, 0.0]]), np.array([[0.0, 0.001]]))
    assert found.kl == pytest.approx(np.log(2), rel=1e-3)
    assert found.top1 == 0


def test_sums_are_taken_in_float64() -> None:
    reference = np.full((1, 100_000), 1e3, np.float32)
    other = reference.copy()
    other[0, 0] += 1
    assert nmse(reference, other) == pytest.approx(1e-11)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParityError, match="shapes differ"):
        compare_logits(REFERENCE, np.ones(shape))


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ParityError, match="not empty"):
        compare_logits(np.ones((0, 4)), np.ones((0, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    other = REFERENCE.copy()
    other[1, 0] = bad
    with pytest.raises(ParityError, match="other, position 1: holds NaN or infinity"):
        compare_logits(REFERENCE, other)
    with pytest.raises(ParityError, match="reference, position 1"):
        nmse(other, REFERENCE)


def test_a_reference_of_zeros_is_refused() -> None:
    zeros = np.zeros((2, 3))
    assert nmse(zeros, zeros) == 0
    with pytest.raises(ParityError, match="position 0: the reference is all zeros"):
        compare_logits(zeros, np.ones((2, 3)))
