"""Sharing out spikes, on sensitivities whose best answer is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from sb_edge.quant.spikes.allocation import allocate, interpolate_costs, predicted_loss, saving
from sb_edge.quant.tuning import search

GRID = np.geomspace(1, 128, 113)


def logarithmic(weights: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
    """Costs of one more spike for each factor of four in k, [n_sites, n_grid]."""
    return weights[:, None] * (1 + 0.5 * np.log2(grid))


def test_logarithmic_costs_have_a_closed_form():
    """d cost / d k = w / k is proportional to d loss / d k = s / k^3, so k^2 = s / w x sum(w) / limit."""
    draw = np.random.default_rng(0)
    weights, sensitivities = draw.uniform(1, 4, 40), draw.lognormal(0, 0.5, 40)
    limit = predicted_loss(sensitivities, np.full(40, 6.0))
    ks = allocate(sensitivities, logarithmic(weights), GRID, limit)
    np.testing.assert_allclose(ks, np.sqrt(sensitivities / weights * weights.sum() / limit), rtol=0.05)
    assert 0.98 * limit < predicted_loss(sensitivities, ks) <= limit


def test_no_choice_is_cheaper_and_loses_less():
    draw = np.random.default_rng(1)
    grid = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    for _ in range(50):
        sensitivities = draw.lognormal(0, 1, 3)
        costs = np.sort(draw.uniform(1, 10, (3, 5)), axis=1)
        ks = allocate(sensitivities, costs, grid, predicted_loss(sensitivities, np.full(3, 3.0)))
        loss = predicted_loss(sensitivities, ks)
        cost = sum(costs[site, grid == k][0] for site, k in enumerate(ks))
        for other in itertools.product(range(5), repeat=3):
            if predicted_loss(sensitivities, grid[list(other)]) <= loss:
                assert costs[range(3), other].sum() >= cost - 1e-9


@pytest.mark.parametrize("k", [1.0, 2.0, 4.7, 64.0])
def test_equal_sites_get_the_single_k(k):
    sensitivities, costs = np.ones(5), logarithmic(np.ones(5))
    ks = allocate(sensitivities, costs, GRID, predicted_loss(sensitivities, np.full(5, k)))
    np.testing.assert_allclose(ks, k, rtol=0.05)


def test_a_site_that_does_not_matter_gets_the_coarsest():
    sensitivities = np.array([1.0, 0.0, 1.0])
    ks = allocate(sensitivities, logarithmic(np.ones(3)), GRID, 0.1)
    assert ks[1] == 1 and ks[0] == ks[2] > 4


def test_a_limit_out_of_reach_gets_the_finest():
    assert (allocate(np.ones(3), logarithmic(np.ones(3)), GRID, 1e-9) == 128).all()


def test_costs_are_interpolated_in_the_logarithm():
    ks = np.array([1.0, 4.0, 16.0])
    costs = np.array([[1.0, 5.0], [2.0, 7.0], [4.0, 8.0]])
    np.testing.assert_allclose(
        interpolate_costs(ks, costs, np.array([1.0, 2.0, 4.0, 8.0])), [[1, 1.5, 2, 3], [5, 6, 7, 7.5]]
    )


def test_saving_is_taken_where_losses_are_equal():
    losses = np.geomspace(1, 0.01, 9)
    costs = 1 - np.log(losses)
    reference = np.stack([costs, losses], axis=1)
    assert saving(reference, np.stack([0.9 * costs, losses], axis=1)) == pytest.approx(0.1)
    assert saving(reference, reference[::-1]) == 0
    assert saving(reference, np.stack([costs + 0.5, losses], axis=1)) < 0
    assert saving(reference, np.array([(1.0, 3.0), (2.0, 2.0)])) == 0


@dataclass(frozen=True)
class Measurement:
    k: float
    ratio: float


def within(point: Measurement) -> bool:
    return point.ratio <= 1.02


KS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


@pytest.mark.parametrize("root", [1.2, 3.7, 5.0, 11.0])
def test_search_finds_the_least_k(root):
    points, best = search(lambda k: Measurement(k, 1 + 0.02 * (root / k) ** 2), KS, within, 4)
    assert best is not None and root <= best.k <= 1.03 * root
    assert best in points and [point.k for point in points] == sorted(point.k for point in points)


def test_one_lucky_measurement_does_not_end_the_search():
    def measure(k: float) -> Measurement:
        return Measurement(k, 1.0 if k == 2 else 1 + 0.02 * (7 / k) ** 2)

    _, best = search(measure, KS, within, 4)
    assert best is not None and 7 <= best.k <= 7.2


def test_search_at_the_ends():
    points, best = search(lambda k: Measurement(k, 1.0), KS, within, 4)
    assert best is not None and best.k == 1 and len(points) == 2
    points, best = search(lambda k: Measurement(k, 1.5), KS, within, 4)
    assert best is None and len(points) == len(KS)
    _, best = search(lambda k: Measurement(k, 1.0 if k > 15 else 1.5), KS, within, 4)
    assert best is not None and 15 < best.k <= 15.3
