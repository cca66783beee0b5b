"""Closed forms of spike statistics for random inputs, compared with the engine's counters.

Inputs are independent and symmetric about 0. With Vth = mean|x| / k the scale of x cancels: y = x / Vth has
mean|y| = k. A count is s = round(y), so P(|s| <= c) = P(|y| < c + 1/2), and every statistic is a sum over c.

The mean of the distribution approximates the mean of each row. The relative difference of O(n^-1/2) for n
channels is random and averages out over rows, up to O(1/n).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch.spike_plan import require_k
from sb_edge.evaluate.spike_stats import of_site
from sb_edge.runtime.spike_counters import SiteCounts, count_synthetic
from sb_edge.util.errors import SpikeError
from sb_edge.util.output import json_fields

CHANNELS = 4096
SEED = 0

TOLERANCE = 0.01
"""Maximum relative difference between a counter and its closed form."""

TAIL = 1e-12
"""Tail probability below which counts are omitted from the sums."""

Distribution = Literal["gaussian", "laplacian"]


@dataclass(frozen=True)
class CountComparison:
    """A statistic measured by the engine and in closed form."""

    name: str
    measured: float
    closed_form: float

    @property
    def difference(self) -> float:
        """Relative difference from the closed form."""
        return abs(self.measured - self.closed_form) / self.closed_form


@dataclass(frozen=True)
class SyntheticCheck:
    """Comparison of the engine's counters with closed forms on random inputs.

    Attributes:
        distribution: distribution of the inputs.
        k: spike k.
        counts: the engine's counts.
        probabilities: [largest + 1], P(|s| = c).
        comparisons: one per statistic.
    """

    distribution: Distribution
    k: float
    counts: SiteCounts
    probabilities: NDArray[np.float64]
    comparisons: tuple[CountComparison, ...]

    @property
    def worst(self) -> CountComparison:
        """The statistic with the largest difference."""
        return max(self.comparisons, key=lambda comparison: comparison.difference)

    def to_json(self) -> dict[str, Any]:
        """The statistics with their differences."""
        return {
            "synthetic": self.distribution,
            "k": self.k,
            **json_fields(self.counts, "channels", "tokens"),
            "tolerance": TOLERANCE,
            "largest_difference": self.worst.difference,
            "comparisons": [
                json_fields(comparison) | {"difference": comparison.difference}
                for comparison in self.comparisons
            ],
        }

    def require_agreement(self) -> None:
        """Raises SpikeError if a difference exceeds `TOLERANCE`."""
        worst = self.worst
        if worst.difference > TOLERANCE:
            raise SpikeError(
                "the engine's counters disagree with the closed form",
                item=worst.name,
                found=f"{worst.measured:.6g}",
                expected=f"{worst.closed_form:.6g} within {TOLERANCE:.0%}",
            )


def check_synthetic(distribution: Distribution, k: float, tokens: int) -> SyntheticCheck:
    """Count the spikes of `tokens` rows of `CHANNELS` random values in the engine.

    Raises:
        SpikeError: k is not a positive number.
        EngineError: the engine is not built.
    """
    probabilities = count_probabilities(distribution, k)
    counts = count_synthetic(sample(distribution, tokens, CHANNELS), k)
    return SyntheticCheck(distribution, k, counts, probabilities, compare(counts, probabilities))


def sample(distribution: Distribution, tokens: int, channels: int) -> NDArray[np.float32]:
    """Random rows of unit scale from a fixed seed, float32 [tokens, channels]."""
    generator = np.random.default_rng(SEED)
    if distribution == "gaussian":
        return generator.standard_normal((tokens, channels), dtype=np.float32)
    return generator.laplace(size=(tokens, channels)).astype(np.float32)


def count_probabilities(distribution: Distribution, k: float) -> NDArray[np.float64]:
    """P(|s| = c) for c = 0, 1, ... until the tail probability is below `TAIL`; float64.

    Raises:
        SpikeError: k is not a positive number.
    """
    require_k(k, "k")
    below = _cumulative(distribution, k)
    largest = 1
    while 1 - below(largest + 0.5) > TAIL:
        largest *= 2
    cumulative = np.array([below(count + 0.5) for count in range(largest + 1)])
    return np.diff(cumulative, prepend=0.0)


def compare(counts: SiteCounts, probabilities: NDArray[np.float64]) -> tuple[CountComparison, ...]:
    """Compare the statistics whose sampling error is far below `TOLERANCE` for a million values.

    Shares of rare counts, for example above 16, are excluded.
    """
    measured = of_site(counts)
    magnitude = np.arange(len(probabilities))
    bits = _popcount(magnitude)
    slots = 3 * np.maximum(1, np.ceil(_bit_length(magnitude) / 3))
    expected_bits = float(probabilities @ bits)
    return (
        CountComparison("silent_share", measured.silent_share, float(probabilities[0])),
        CountComparison("share_at_most_7", measured.share_at_most_7, float(probabilities[:8].sum())),
        CountComparison("unary", measured.spikes_per_channel["unary"], float(probabilities @ magnitude)),
        CountComparison("bitwise", measured.spikes_per_channel["bitwise"], expected_bits),
        CountComparison(
            "twos_complement",
            measured.spikes_per_channel["twos_complement"],
            twos_complement_spikes(probabilities, counts.channels),
        ),
        CountComparison(
            "window_sparsity", measured.window_sparsity, 1 - expected_bits / float(probabilities @ slots)
        ),
    )


def twos_complement_spikes(probabilities: NDArray[np.float64], channels: int) -> float:
    """Expected spikes per channel in two's complement coding, whose T depends on the row's largest count.

    A row has T = b + 1 steps if its largest |s| has b bits. With F(b) = P(|s| < 2^b), the probability that a
    channel has |s| = c <= 2^b - 1 and the row needs exactly b bits is
    P(c) * (F(b)^(n-1) - [c < 2^(b-1)] F(b-1)^(n-1)).

    Args:
        probabilities: P(|s| = c).
        channels: number of channels per row, n.
    """
    magnitude = np.arange(len(probabilities))
    bits = _popcount(magnitude)
    length = _bit_length(magnitude)
    expected = 0.0
    for largest_length in range(int(length[-1]) + 1):
        steps = max(largest_length + 1, 2)
        # Half of the nonzero counts are negative; -c is the bits of 2^T - c.
        train = np.where(magnitude == 0, 0.0, (bits + _popcount(2**steps - magnitude)) / 2)
        fits, shorter = length <= largest_length, length < largest_length
        alone = np.where(fits, float(probabilities[fits].sum()) ** (channels - 1), 0.0)
        alone -= np.where(shorter, float(probabilities[shorter].sum()) ** (channels - 1), 0.0)
        expected += float((probabilities * train * alone).sum())
    return expected


def _cumulative(distribution: Distribution, k: float) -> Callable[[float], float]:
    """P(|y| < t) for mean|y| = k."""
    if distribution == "laplacian":  # |y| is exponential
        return lambda t: -math.expm1(-t / k)
    sigma = k * math.sqrt(math.pi / 2)  # of a Gaussian: mean|y| = sigma * sqrt(2 / pi)
    return lambda t: math.erf(t / (sigma * math.sqrt(2)))


def _popcount(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([int(value).bit_count() for value in values], dtype=np.int64)


def _bit_length(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([int(value).bit_length() for value in values], dtype=np.int64)
