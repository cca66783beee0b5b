"""Two models on the same cases: difference of their shares, its interval, and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedDifference:
    """Share of cases that one model answers, less that of another, on the same cases.

    Attributes:
        value: the difference, -1 to 1.
        low, high: 95 % interval.
        p: probability of a difference this large between equal models: McNemar's exact test, two-sided.
    """

    value: float
    low: float
    high: float
    p: float


def paired_difference(found: Sequence[bool], reference: Sequence[bool]) -> PairedDifference:
    """Compare two models by the cases in which they differ.

    The interval is Wald's with half a case added to each of the four outcomes (Agresti and Min, 2005), so
    that few cases without a difference do not give an interval of no width.

    Args:
        found, reference: for each case, whether the model answers it.
    """
    pairs = list(zip(found, reference, strict=True))
    better, worse = (pairs.count(pair) for pair in ((True, False), (False, True)))
    n = len(pairs) + 2
    middle = (better - worse) / n
    reach = 1.96 * math.sqrt(better + worse + 1 - (better - worse) ** 2 / n) / n
    differing = better + worse
    tail = sum(math.comb(differing, count) for count in range(min(better, worse) + 1)) / 2**differing
    return PairedDifference(
        value=(better - worse) / len(pairs),
        low=max(-1.0, middle - reach),
        high=min(1.0, middle + reach),
        p=min(1.0, 2 * tail),
    )
