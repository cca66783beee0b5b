from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from support import sb_edge

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.cli.spike_options import Projections, SpikeK, coded_k, k_text, plan_text


@pytest.mark.parametrize(("text", "k"), [("3", 3.0), ("2.5", 2.5), ("1e3", 1000.0)])
def test_k(text, k):
    assert SpikeK().convert(text, None, None) == k


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "three", "", "auto"])
def test_k_that_is_refused(text):
    with pytest.raises(click.BadParameter, match="is not a positive number; the release uses 3"):
        SpikeK().convert(text, None, None)


def test_zero_where_it_makes_sense():
    assert SpikeK(zero=True).convert("0", None, None) == 0
    for text in ("auto", "-0.5"):
        with pytest.raises(click.BadParameter):
            SpikeK(zero=True).convert(text, None, None)


def test_projections():
    assert Projections().convert("ffn_up, attn_q", None, None) == ("ffn_up", "attn_q")
    for text, problem in (("", "'' is not one of attn_q"), ("attn_q,attn_q", "'attn_q' is named twice")):
        with pytest.raises(click.BadParameter, match=problem):
            Projections().convert(text, None, None)


def test_plans_in_words():
    assert plan_text(SpikePlan(("attn_q",), 2.5)) == "k = 2.5 at attn_q"
    released = SpikePlan(("attn_q", "ffn_up"), query_k=3, kv_rounding=True)
    assert plan_text(released) == "k = 3 at attn_q ffn_up; queries k = 3; K and V rounded to INT8"
    tuned = SpikePlan(("attn_q", "ffn_up"), 3, ((2.0, 0.0), (0.0, 4.5)))
    assert k_text(tuned) == "k per projection, 2 to 4.5" and coded_k(tuned) == [2.0, 4.5]
    assert k_text(SpikePlan(("attn_q",), 3, ((0.0,),))) == "k = 0"


def test_convert_says_what_happened(data, tmp_path):
    line = ["convert", data / "w8aspike", "--output"]
    done = sb_edge(*line, tmp_path / "a.gguf")
    assert done.returncode == 0 and "to q8_0: 57 tensors" in done.stderr
    assert "spikes: k = 3 at attn_q attn_k attn_v ssm_f attn_output ffn_gate ffn_up; queries" in done.stderr
    assert "475,136 of 475,136 codes exact, 0 blocks requantized; scales rounded" in done.stderr
    done = sb_edge(*line, tmp_path / "b.gguf", "--outtype", "f32")
    assert "475,136 codes times their scales, exactly as released" in done.stderr
    done = sb_edge(*line, tmp_path / "c.gguf", "--dry-run")
    assert "spikes: k = 3" in done.stdout and "integer weights" not in done.stdout


def test_codes_beyond_int8_are_named():
    from sb_edge.cli.convert import _spike_lines
    from sb_edge.convert.convert import ConversionReport
    from sb_edge.convert.w8aspike import CodesReport

    codes = CodesReport(1000, 936, {"blk.0.ffn_gate.weight": 5, "blk.0.ffn_up.weight": 1}, 2, 4e-4)
    lines = list(_spike_lines(ConversionReport((), "q8_0", (), 0, 1.0, "gpt2", None, codes)))
    assert "936 of 1,000 codes exact, 2 blocks requantized" in lines[0]
    assert lines[1] == "codes beyond INT8: 6 in 2 tensors, most in blk.0.ffn_gate.weight (5)"


def test_spikes_set_names_a_bad_k():
    from sb_edge.cli.spikes import command

    result = CliRunner().invoke(command, ["set", "a.gguf", "b.gguf", "much"])
    assert result.exit_code == 2 and "'much' is not a positive number or 0" in result.output
