from __future__ import annotations

import pytest

from sb_edge.bench.rows.timing import summarize
from sb_edge.util.errors import SbEdgeError


def test_summary_by_hand() -> None:
    timing = summarize([1_000_000_000, 2_000_000_000, 4_000_000_000], 8)
    assert timing.samples_ts == (8.0, 4.0, 2.0)
    assert timing.median_ts == 4.0
    assert timing.avg_ts == pytest.approx(14 / 3)
    assert timing.stddev_ts == pytest.approx(3.0550504633)  # divisor R - 1
    assert timing.avg_ns == 2_333_333_333
    assert timing.stddev_ns == 1_527_525_231


def test_one_sample_has_no_spread() -> None:
    timing = summarize([500_000_000], 1)
    assert (timing.avg_ts, timing.stddev_ts, timing.stddev_ns) == (2.0, 0.0, 0)


@pytest.mark.parametrize("samples", [[], [0], [5, -1]])
def test_impossible_samples_are_refused(samples: list[int]) -> None:
    with pytest.raises(SbEdgeError, match="must be positive"):
        summarize(samples, 1)
