"""`sb-edge bench spikes`: pairs, their ratio, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sb_edge.bench.rows.timing import summarize
from sb_edge.bench.spikes.spike_speed import SpikeSpeed
from sb_edge.cli import cli
from sb_edge.convert.convert import convert_checkpoint

DATA = Path(__file__).parents[1] / "data"


def test_the_ratio_is_that_of_neighbours() -> None:
    speed = SpikeSpeed("tg1", summarize([100, 200, 400], 1), summarize([200, 200, 100], 1))
    assert speed.ratios == pytest.approx([0.5, 1.0, 4.0])
    assert speed.ratio == pytest.approx(1.0)
    assert speed.quartiles == pytest.approx((0.75, 2.5))
    single = SpikeSpeed("tg1", summarize([100], 1), summarize([50], 1))
    assert single.quartiles == pytest.approx((2.0, 2.0))


@pytest.mark.engine
def test_bench_spikes(tmp_path: Path) -> None:
    file = tmp_path / "w8aspike-q8_0.gguf"
    convert_checkpoint(DATA / "w8aspike", file)
    arguments = ["bench", "spikes", str(file), "-p", "20", "-n", "3", "-r", "2"]
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0, table.output
    assert "pp20" in table.stdout and "tg3 @ d20" in table.stdout
    done = CliRunner().invoke(cli, [*arguments, "--json", "-"])
    prompt, decode = json.loads(done.stdout)
    assert (prompt["label"], decode["label"]) == ("pp20", "tg3 @ d20")
    assert len(decode["without"]["samples_ts"]) == len(decode["spiking"]["samples_ts"]) == 2
    assert decode["ratio"] > 0
