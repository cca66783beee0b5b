"""The ratio of two speeds with a bootstrap confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb_edge.util.errors import SbEdgeError

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 20260101
"""Seed of the resampling: equal samples give equal intervals."""


@dataclass(frozen=True)
class Ratio:
    """The ratio of two speeds.

    Attributes:
        value: the ratio.
        low, high: bounds of its 95 % confidence interval; None with fewer than two samples.
        paired: True for the median over interleaved pairs, False for the ratio of two medians.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`, or twice the value where there is no interval."""
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)


def speed_ratio(ours: Sequence[float], theirs: Sequence[float], *, paired: bool) -> Ratio:
    """The ratio of two series of speeds with a percentile bootstrap interval.

    Pairs are divided and resampled together, so that a disturbance of both samples of a pair cancels.

    Args:
        ours: speeds of A, one per repetition.
        theirs: speeds of B.
        paired: the i-th samples of both were measured one after the other.

    Raises:
        SbEdgeError: no samples, a speed that is not positive, or pairs with unequal numbers of samples.
    """
    if not ours or not theirs or min(*ours, *theirs) <= 0:
        raise SbEdgeError("a ratio needs positive speeds", found=[*ours, *theirs])
    if paired:
        if len(ours) != len(theirs):
            raise SbEdgeError("pairs need equal numbers of samples", found=f"{len(ours)} and {len(theirs)}")
        ratios = np.divide(ours, theirs)
        low, high = _interval((ratios,), np.median)
        return Ratio(float(np.median(ratios)), low, high, paired=True)
    value = float(np.median(ours) / np.median(theirs))
    low, high = _interval((np.asarray(ours), np.asarray(theirs)), _ratio_of_medians)
    return Ratio(value, low, high, paired=False)


def _ratio_of_medians(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.median(ours, axis=axis) / np.median(theirs, axis=axis)


def _interval(samples: tuple[np.ndarray, ...], statistic: object) -> tuple[float | None, float | None]:
    if min(len(sample) for sample in samples) < 2:
        return None, None
    from scipy.stats import bootstrap

    # The percentile method: BCa's jackknife breaks down for a median of few samples.
    interval = bootstrap(
        samples,
        statistic,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=SEED,
    ).confidence_interval
    return float(interval.low), float(interval.high)
