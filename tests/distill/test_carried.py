"""States of GLA layers made anew from the last window."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch

from sb_edge.convert.transplant import transplant
from sb_edge.distill.base import load_base
from sb_edge.distill.carried import CarriedScore, carried_score, set_window
from sb_edge.distill.student import make_student
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.evaluate.recall_cases import Encode
from sb_edge.evaluate.retrieval import RecallTask
from sb_edge.reference.network import SpikingBrain

EXAMPLE = Path(__file__).parents[2] / "examples" / "beyond_window.py"
WINDOW = 24
TASK = RecallTask("dictionary", 2 * WINDOW, 2, 5)


def plain_log_p(model: SpikingBrain, encode: Encode, last: int | None) -> float:
    """Mean log probability of the answers, each read in one pass over the last tokens of its prompt."""
    values = []
    for case in TASK.cases(encode):
        prompt = case.prompt[-last:] if last else case.prompt
        with torch.no_grad():
            rows = model(torch.tensor([[*prompt, *case.answer]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        values.append(float(rows.gather(1, torch.tensor(case.answer)[:, None]).mean()))
    return sum(values) / len(values)


def test_the_example_prints_a_row_for_each_task(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call takes up the finished parts, and prints the same."""
    transplant(tiny_base, tmp_path / "student", dtype="f32", window=WINDOW)
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path / "cache"))
    arguments = ["--distances", "2", "--cases", "2", "--parts", str(tmp_path / "parts.json")]
    monkeypatch.setattr(sys, "argv", ["beyond", str(tiny_base), str(tmp_path / "student"), *arguments])
    printed = []
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLE))
        assert not end.value.code
        printed.append(capsys.readouterr().out)
    lines = printed[0].splitlines()
    assert printed[0] == printed[1] and max(map(len, lines)) <= 80
    tasks = ("passkey (2)", "dictionary of 5 (2)", "dictionary of 10 (2)", "facts (2)")
    assert all(any(line.startswith(f"{task} ") for line in lines) for task in tasks)


@pytest.mark.parametrize("gla_layers", [(0, 1, 2, 3), (), (0, 2)])
def test_states_made_anew_know_the_last_window_alone(tiny_base: Path, gla_layers: tuple[int, ...]) -> None:
    """With GLA alone that is a prompt of one window, without GLA it changes nothing."""
    base = load_base(tiny_base, torch.device("cpu"))
    model = make_student(base, gla_layers, window=4096, seed=0)
    set_window(model, WINDOW)
    encode = Tokenizer(base.reader).encode
    score = carried_score(model, TASK, encode, WINDOW)
    assert score.task == TASK and len(score.hits) == len(score.anew_hits) == TASK.trials
    whole, last = (plain_log_p(model, encode, tokens) for tokens in (None, WINDOW))
    assert abs(whole - last) > 1e-5
    assert fmean(score.log_p) == pytest.approx(whole, abs=1e-6)
    anew = fmean(score.anew_log_p)
    if len(gla_layers) == 2:
        assert abs(anew - whole) > 1e-5 and abs(anew - last) > 1e-5
    else:
        assert anew == pytest.approx(last if gla_layers else whole, abs=1e-6)


def test_the_gain_is_that_of_the_single_cases() -> None:
    score = CarriedScore(TASK, (True, False), (False, False), (-1.0, -2.0), (-1.5, -4.5))
    assert score.gain == pytest.approx((1.5, 1.0 / 2**0.5))
