"""Tuning k: the choice keeps the budget, is stored, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support import exit_code

from sb_edge.arch.model_spikes import check_plan
from sb_edge.arch.spike_plan import PROJECTIONS, CodedInput, SpikePlan
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.gguf.reader import read_header
from sb_edge.quant.spikes import k_tuning as spike_tuning
from sb_edge.quant.spikes.k_tuning import (
    GRID,
    Figures,
    TunedPoint,
    plan_with,
    require_budget,
    start_k,
    tune_file,
)
from sb_edge.quant.tuning import Text, cut_text
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError, SpikeError

SHARED = ("attn_q", "attn_k", "attn_v")


def point(ks: tuple[float, ...], k: float = 3.0) -> TunedPoint:
    figures = Figures(10, 1.01, 0.001, 0.01, 1.2, 1.3, 0.7)
    return TunedPoint("tuned", k, ks, figures, figures)


def test_inputs_are_shared_and_only_gla_layers_have_gates():
    sites = SpikePlan().coded_inputs([True, False])
    assert sites[0] == CodedInput(0, (*SHARED, "ssm_f")) and sites[4] == CodedInput(1, SHARED)
    assert [site.projections[0] for site in sites[1:4]] == ["attn_output", "ffn_gate", "ffn_down"]
    assert SpikePlan(("ssm_f", "ffn_up")).coded_inputs([True, False]) == (
        CodedInput(0, ("ssm_f",)),
        CodedInput(0, ("ffn_up",)),
        CodedInput(1, ("ffn_up",)),
    )


def test_a_plan_keeps_what_is_not_tuned():
    plan = SpikePlan((*SHARED, "ssm_f", "ffn_down"), 2, query_k=2.5, kv_rounding=True)
    found = plan_with(plan, plan.coded_inputs([True, False]), point((2.0, 3.0, 4.0, 5.0), 3.3), 2)
    rows = ((2.0, 2.0, 2.0, 2.0, 3.0), (4.0, 4.0, 4.0, 0.0, 5.0))
    assert found == replace(plan, k=3.3, layer_k=rows)


@pytest.mark.parametrize("budget", [0, -0.1, float("inf"), float("nan")])
def test_a_budget_must_be_a_positive_number(budget):
    with pytest.raises(SpikeError, match="budget: must be a positive number"):
        require_budget(budget)


def perplexity(path: Path, text: Text, spikes: float | None = None) -> float:
    with Model(path, spikes=spikes) as model, Session(model, n_ctx=512, n_batch=128) as session:
        logits = session.evaluate(text.tokens, all_logits=True)[:-1].astype(np.float64)
    chosen = logits[np.arange(len(logits)), list(text.tokens[1:])]
    return float(np.exp(np.log(np.exp(logits).sum(axis=1)).mean() - chosen.mean()))


@pytest.mark.engine
def test_the_choice_is_stored_and_keeps_the_budget(tiny: Path, texts: tuple[Text, Text], tmp_path: Path):
    path = tmp_path / "tuned.gguf"
    with_spike_plan(tiny, path, SpikePlan())
    tuning = tune_file(path, *texts, 0.02, n_threads=1)
    plan = check_plan(read_header(path))
    assert plan is not None and plan.layer_k is not None and plan.projections == PROJECTIONS
    np.testing.assert_allclose(plan.layer_k, tuning.plan.layer_k, rtol=1e-7)
    for layer, row in enumerate(plan.layer_k):
        assert len({row[0], row[1], row[2]}) == 1 and row[5] == row[6]
        assert (row[3] == 0) == bool(layer % 2)
        assert all(GRID[0] <= k <= GRID[-1] for k in row if k)
    assert perplexity(path, texts[0]) <= 1.02 * perplexity(path, texts[0], spikes=0)
    assert 1 < tuning.single.ratio <= 1.02 and 1 < tuning.tuned.ratio <= 1.02
    assert tuning.chosen.tuning.additions_per_mac <= tuning.single.tuning.additions_per_mac
    assert {point.kind for point in tuning.points} == {"single", "tuned"}
    assert len(tuning.sensitivities) == len(tuning.sites) == 4 * 4
    assert min(tuning.sensitivities) > 0
    json.dumps(tuning.to_json(), allow_nan=False)


@pytest.mark.engine
def test_a_budget_out_of_reach_leaves_the_file(
    tiny: Path, texts: tuple[Text, Text], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "tuned.gguf"
    with_spike_plan(tiny, path, SpikePlan(("ffn_down",)))
    before = path.read_bytes()
    monkeypatch.setattr(spike_tuning, "CURVE_KS", (1.0,))
    with pytest.raises(SpikeError, match=r"a budget of 0\.0001: is broken even by k = 1 \(found perplexity"):
        tune_file(path, *texts, 1e-4, n_threads=1)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.engine
def test_what_cannot_be_tuned_is_named(tiny: Path, texts: tuple[Text, Text], golden_gguf: Path):
    with pytest.raises(SpikeError, match="has no spikes to tune"):
        tune_file(tiny, *texts, 0.02)
    with pytest.raises(SpikeError, match=r"a\.txt: the text is too short to tune on \(found 3 tokens"):
        tune_file(tiny, Text("a.txt", (1, 2, 3)), texts[1], 0.02)
    with pytest.raises(SpikeError, match=r"b\.txt: the text is too short"):
        cut_text(tiny, "", "b.txt")
    with pytest.raises(InferenceError, match="has no vocabulary"):
        cut_text(golden_gguf, "text", "c.txt")


@pytest.mark.engine
def test_queries_keep_their_k(tiny: Path, tmp_path: Path):
    assert start_k(read_header(tiny)) == 3
    with_spike_plan(tiny, tmp_path / "a.gguf", SpikePlan(k=2, query_k=2.5))
    assert start_k(read_header(tmp_path / "a.gguf")) == 2.5


run = partial(exit_code, "spikes", "tune")


@pytest.mark.engine
def test_command_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text, out, curve = tmp_path / "tune.txt", tmp_path / "out.gguf", tmp_path / "curve"
    text.write_text("It was late, and nobody in the house had noticed that the rain had stopped. " * 9)
    line = [tiny, out, "--spike-projections", "attn_output,ffn_down"]
    assert run(*line, "--budget", "0.5", "--text", text, "--tokens", 128, "--curve", curve, "-t", 1) == 0
    printed = capsys.readouterr().out
    assert "perplexity up by at most 50.00%" in printed
    assert "held-out, not tuned on: 127 predicted tokens" in printed
    assert str(out) in printed
    plan = check_plan(read_header(out))
    assert plan is not None and plan.projections == ("attn_output", "ffn_down") and plan.layer_k is not None
    assert sorted(path.name for path in curve.iterdir()) == ["tuning.json", "tuning.png", "tuning.svg"]
    document = json.loads((curve / "tuning.json").read_text())
    assert document["budget"] == 0.5 and document["text"] == "tune.txt" and document["tokens"] == 127
    assert exit_code("inspect", out) == 0
    assert "attn_output ffn_down" in capsys.readouterr().out
    assert run(tiny, out, "--text", tmp_path / "absent.txt") == 1
    assert "absent.txt: No such file" in capsys.readouterr().err
    text.write_text("Too short.")
    before = out.read_bytes()
    assert run(tiny, out, "--text", text) == 1
    assert "tune.txt: the text is too short to tune on" in capsys.readouterr().err
    text.write_bytes(b"caf\xe9")
    assert run(tiny, out, "--text", text) == 1
    assert "tune.txt: is not UTF-8 text (found byte 3)" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing option '--text'"),
        (["--text", "a.txt", "--budget", "0"], "0.0 is not in the range x>0"),
        (["--text", "a.txt", "--budget", "inf"], "'inf' is not a finite number"),
        (["--text", "a.txt", "--budget", "2%"], "'2%' is not a valid float"),
        (["--text", "a.txt", "--tokens", "2"], "'2' is not in the range"),
    ],
)
def test_bad_usage(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
):
    assert run(tiny, tmp_path / "out.gguf", *arguments) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
