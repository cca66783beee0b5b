"""Dead zones: savings and costs of a threshold, and the choice."""

from __future__ import annotations

import numpy as np
import pytest

from sb_edge.quant.sparse.dead_zones import SHARES, Importances, ZoneCurve, choose, zones


def test_the_curve_is_that_of_the_sorted_importances() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((63, 60)).astype(np.float32)
    x[0] *= 1000  # as the first token's inputs are in some layers
    norms = rng.uniform(0.1, 3, 60).astype(np.float32)
    importances = Importances(norms)
    importances.add(x[:40])
    importances.add(x[40:])
    curve = importances.curve()
    values = np.abs(x) * norms
    assert curve.taus[0] == curve.silent[0] == curve.errors[0] == 0
    energies = np.square(values, dtype=np.float64)
    energies /= energies.sum(axis=1, keepdims=True)
    for tau, silent, error in zip(curve.taus, curve.silent, curve.errors, strict=True):
        assert silent == pytest.approx((values < tau).mean(), abs=1e-3)
        assert error == pytest.approx((energies * (values < tau)).sum(axis=1).mean(), abs=1e-3)
    assert np.all(np.diff(curve.taus) >= 0)
    assert np.all(curve.silent <= SHARES + 1e-12) and curve.silent[-1] == pytest.approx(0.95, abs=0.03)


def test_zeros_are_silent_under_the_least_threshold_and_nothing_divides_by_zero() -> None:
    importances = Importances(np.ones(4, np.float32))
    importances.add(np.zeros((3, 4), np.float32))
    curve = importances.curve()
    assert not curve.taus.any() and not curve.errors.any()
    assert zones(1.0, np.array([2, 0.5, 0], np.float32)).tolist() == [0.5, 2.0, np.finfo(np.float32).max]
    assert zones(0.0, np.array([2, 0], np.float32)).tolist() == [0, 0]


def test_silence_goes_where_it_costs_least() -> None:
    silent = np.array([0, 0.5, 0.9])
    cheap = ZoneCurve(np.array([0, 1, 2]), silent, np.array([0, 0.001, 0.01]))
    dear = ZoneCurve(np.array([0, 1, 2]), silent, np.array([0, 0.1, 0.4]))
    gains, weights = np.array([0.5, 0.5]), np.array([1.0, 1.0])

    def taken(trade: float, max_density: float = 0.7) -> list[int]:
        return choose([cheap, dear], gains, weights, trade, max_density).tolist()

    assert taken(1e-6) == [0, 0]
    assert taken(0.1) == [2, 0]
    assert taken(100) == [2, 2]
    assert taken(100, max_density=0.05) == [0, 0]
    assert choose([cheap, cheap], gains, np.array([1.0, 1e6]), 0.1, 0.7).tolist() == [2, 0]
