from __future__ import annotations

import numpy as np
import pytest

from sb_edge.bench.rows.ratios import speed_ratio
from sb_edge.util.errors import SbEdgeError


def test_pairs_cancel_what_slows_down_both() -> None:
    theirs = [10.0, 5.0, 20.0, 8.0, 12.0]
    ours = [2 * speed for speed in theirs]
    paired = speed_ratio(ours, theirs, paired=True)
    assert (paired.value, paired.low, paired.high) == (2.0, 2.0, 2.0)
    loose = speed_ratio(ours, theirs, paired=False)
    assert loose.value == 2.0
    assert loose.low is not None and loose.high is not None
    assert loose.low < 1.5 < 2.5 < loose.high


def test_the_value_lies_in_its_interval_which_is_repeatable() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.uniform(9, 11, 15).tolist(), rng.uniform(4, 6, 15).tolist()
    for paired in (True, False):
        ratio = speed_ratio(ours, theirs, paired=paired)
        assert ratio.low is not None and ratio.high is not None
        assert ratio.low <= ratio.value <= ratio.high
        assert speed_ratio(ours, theirs, paired=paired) == ratio


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(40):
        drift = rng.uniform(0.5, 2, 20)
        theirs = drift * rng.lognormal(0, 0.05, 20)
        ours = 3 * drift * rng.lognormal(0, 0.05, 20)
        ratio = speed_ratio(ours.tolist(), theirs.tolist(), paired=True)
        assert ratio.low is not None and ratio.high is not None
        hits += ratio.low <= 3 <= ratio.high
    assert hits >= 34  # of 95 % in 40, fewer have a chance of 1 in 1000


def test_one_sample_has_no_interval() -> None:
    for paired in (True, False):
        ratio = speed_ratio([6.0], [2.0], paired=paired)
        assert (ratio.value, ratio.low, ratio.high, ratio.paired) == (3.0, None, None, paired)


@pytest.mark.parametrize(
    ("ours", "theirs", "paired"), [([], [], False), ([1.0, 0.0], [1.0, 1.0], True), ([1.0], [1.0, 2.0], True)]
)
def test_impossible_samples_are_refused(ours: list[float], theirs: list[float], paired: bool) -> None:
    with pytest.raises(SbEdgeError):
        speed_ratio(ours, theirs, paired=paired)
