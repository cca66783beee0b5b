"""Summaries of repeated timings: llama-bench's mean and deviation, and the median."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sb_edge.util.errors import SbEdgeError

NS_PER_SECOND = 1_000_000_000


@dataclass(frozen=True)
class Timing:
    """R repetitions of the same work.

    Attributes:
        samples_ns: wall time of each repetition, nanoseconds.
        samples_ts: tokens per second of each repetition.
        avg_ns, stddev_ns: mean and sample standard deviation (divisor R - 1) of `samples_ns`.
        avg_ts, stddev_ts, median_ts: mean, sample standard deviation and median of `samples_ts`.
    """

    samples_ns: tuple[int, ...]
    samples_ts: tuple[float, ...]
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    median_ts: float


def summarize(samples_ns: Sequence[int], n_tokens: int) -> Timing:
    """Summarize the wall times of repetitions of `n_tokens` tokens each.

    A single repetition has standard deviation 0, as in llama-bench.

    Raises:
        SbEdgeError: no sample, or one that is not positive.
    """
    if not samples_ns or min(samples_ns) <= 0:
        raise SbEdgeError("timings must be positive", found=list(samples_ns))
    speeds = tuple(n_tokens * NS_PER_SECOND / ns for ns in samples_ns)
    several = len(samples_ns) > 1
    return Timing(
        samples_ns=tuple(samples_ns),
        samples_ts=speeds,
        avg_ns=int(statistics.fmean(samples_ns)),
        stddev_ns=int(statistics.stdev(samples_ns)) if several else 0,
        avg_ts=statistics.fmean(speeds),
        stddev_ts=statistics.stdev(speeds) if several else 0.0,
        median_ts=statistics.median(speeds),
    )
