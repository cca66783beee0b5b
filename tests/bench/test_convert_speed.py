from __future__ import annotations

import pytest

from sb_edge.bench.selftest.convert_speed import run
from sb_edge.util.errors import OutputError


def test_measures_both_and_cleans_up(tmp_path):
    small, large = run(0.25, repetitions=1, folder=tmp_path)
    for row in (small, large):
        assert row.size_bytes > 200e6
        assert row.ratio == row.copy_seconds / row.convert_seconds > 0
        assert 0 < row.peak_rss_bytes < 200 << 20  # less than the weights: they were streamed
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_the_disk_cannot_hold(tmp_path):
    with pytest.raises(OutputError, match="not enough space"):
        run(1e6, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
