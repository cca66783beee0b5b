from __future__ import annotations

import numpy as np
import pytest
from spike_oracle import count

from sb_edge.arch.coding import spike_counts
from sb_edge.bench.spikes.theory import (
    TOLERANCE,
    Distribution,
    SyntheticCheck,
    compare,
    count_probabilities,
    sample,
    twos_complement_spikes,
)
from sb_edge.util.errors import SpikeError

DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "laplacian")


@pytest.mark.parametrize("k", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_probabilities_are_those_of_a_distribution_with_mean_k(distribution: Distribution, k: float) -> None:
    probabilities = count_probabilities(distribution, k)
    assert probabilities.min() >= 0
    assert probabilities.sum() == pytest.approx(1, abs=1e-11)
    draws = np.abs(sample(distribution, 1, 2_000_000)[0].astype(np.float64))
    counts = np.rint(draws * k / draws.mean()).astype(np.int64)
    frequencies = np.bincount(counts, minlength=len(probabilities))[: len(probabilities)] / len(counts)
    # Five standard errors of a frequency.
    assert np.abs(frequencies - probabilities).max() < 5 * 0.5 / np.sqrt(len(counts))


@pytest.mark.parametrize("k", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_statistic_agrees_with_brute_force(distribution: Distribution, k: float) -> None:
    counts, _ = spike_counts(sample(distribution, 128, 4096), k)
    for comparison in compare(count(counts, k=k), count_probabilities(distribution, k)):
        assert comparison.difference < TOLERANCE, comparison


def test_twos_complement_by_hand() -> None:
    # |s| is 0, 1 or 2 with 1/2, 1/4, 1/4; rows of one channel: T = 2, 2 and 3 steps.
    # 1 is 01 or 11; 2 is 010 or 110: 1.5 spikes each on average.
    assert twos_complement_spikes(np.array([0.5, 0.25, 0.25]), 1) == pytest.approx(0.75)
    # Rows of two channels with |s| = 1 or 0: always T = 2, or nothing at all.
    assert twos_complement_spikes(np.array([0.5, 0.5]), 2) == pytest.approx(0.75)


def test_disagreement_is_named() -> None:
    counts, _ = spike_counts(sample("gaussian", 64, 256), 3.0)
    counted, wrong = count(counts), count_probabilities("laplacian", 3.0)
    check = SyntheticCheck("laplacian", 3.0, counted, wrong, compare(counted, wrong))
    assert check.worst.difference > TOLERANCE
    with pytest.raises(SpikeError, match=r"silent_share: the engine's counters disagree .* within 1%"):
        check.require_agreement()


@pytest.mark.parametrize("k", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_k(k: float) -> None:
    with pytest.raises(SpikeError, match="must be a positive number"):
        count_probabilities("gaussian", k)
