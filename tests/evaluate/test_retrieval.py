"""`sb-edge eval --recall`: cases, distances, scores, paired differences and the table."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from support import sb_edge

from sb_edge.evaluate.evaluation import Evaluation, Run, TaskScores
from sb_edge.evaluate.evaluation_table import recall_table
from sb_edge.evaluate.paired import paired_difference
from sb_edge.evaluate.perplexity import token_losses
from sb_edge.evaluate.quality import Quality
from sb_edge.evaluate.retrieval import (
    RECALL_TASKS,
    Distance,
    RecallTask,
    RetrievalScore,
    encode_with,
    recall,
    recall_tasks,
)
from sb_edge.gguf.reader import read_header
from sb_edge.models.default_model import default_base
from sb_edge.runtime.session import Model
from sb_edge.util.errors import InferenceError


def score(hits: str) -> RetrievalScore:
    """A score of passkeys: "110" are two found and one not."""
    return RetrievalScore(RecallTask("passkey", 64, len(hits)), tuple(hit == "1" for hit in hits), -0.5)


@pytest.mark.parametrize(
    ("found", "base", "value", "low", "high"),
    [
        # b = 0 and c = 4 of 10: (0.5 - 4.5) / 12 -+ 1.96 sqrt(5 - 16 / 12) / 12
        ("1111000000", "1111111100", -0.4, -0.646094, -0.020573),
        ("1100", "1010", 0.0, -0.565803, 0.565803),  # sqrt(1.5 + 1.5) * 1.96 / 6
        ("110111", "010000", 4 / 6, 0.075648, 0.924352),  # sqrt(4 + 1 - 16 / 8) * 1.96 / 8
        ("11", "11", 0.0, -0.49, 0.49),  # sqrt(0.5 + 0.5) * 1.96 / 4
    ],
)
def test_a_paired_difference_counts_cases_that_differ(
    found: str, base: str, value: float, low: float, high: float
) -> None:
    difference = paired_difference(score(found).hits, score(base).hits)
    assert difference.value == pytest.approx(value)
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-5)
    both = [(a, b) for a, b in zip(found, base, strict=True) if a != b]
    expected = binomtest(both.count(("1", "0")), len(both)).pvalue if both else 1.0
    assert difference.p == pytest.approx(expected)


def test_the_interval_covers_the_truth() -> None:
    """1000 pairs of models with known shares, 50 cases each: 95 % of the intervals, give or take noise."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        easy = rng.random(50) < 0.5
        first, second = (easy | (rng.random(50) < extra) for extra in (0.4, 0.1))
        texts = ("".join(map(str, hits.astype(int))) for hits in (first, second))
        difference = paired_difference(*(score(text).hits for text in texts))
        covered += difference.low <= 0.5 * (0.4 - 0.1) <= difference.high
    assert 930 <= covered <= 985


def test_all_tasks_at_all_distances() -> None:
    names = [(task.name, task.distance, task.trials) for task in recall_tasks((0, 96), 7, list(RECALL_TASKS))]
    kinds = ("passkey", "dictionary of 5", "dictionary of 10", "dictionary of 20", "facts")
    assert names == [(name, distance, 7) for distance, name in itertools.product((0, 96), kinds)]


def test_distances_in_windows_are_those_of_the_model(tiny: Path) -> None:
    window = read_header(tiny).integer("attention.sliding_window")
    assert Distance(300).tokens(tiny) == 300
    assert Distance(1.5, is_windows=True).tokens(tiny) == 1.5 * window


@pytest.mark.engine
def test_a_model_without_a_window_is_named() -> None:
    with pytest.raises(InferenceError, match=r"window: has no window; give distances in tokens"):
        Distance(3, is_windows=True).tokens(default_base())


@pytest.mark.engine
def test_what_is_told_is_the_same_at_every_distance(tiny: Path) -> None:
    with Model(tiny) as model:
        for kind, pairs in (("passkey", 0), ("dictionary", 5), ("facts", 0)):
            tasks = (RecallTask(kind, distance, 3, pairs) for distance in (10, 321))
            near, far = (task.cases(encode_with(model)) for task in tasks)
            assert len({case.told for case in near}) == 3
            for one, other in zip(near, far, strict=True):
                assert len(other.told) - len(one.told) == 311
                assert (one.asked, one.answer) == (other.asked, other.answer)
                assert other.told[: len(one.told)] == one.told


@pytest.mark.engine
def test_scores_are_those_of_the_plain_computation(tiny: Path) -> None:
    tasks = [RecallTask("dictionary", 30, 2, 5), RecallTask("passkey", 80, 1)]
    with Model(tiny) as model:
        found = recall(model, tasks)
        for task, score in zip(tasks, found, strict=True):
            assert score.task == task and len(score.hits) == task.trials
            means = []
            for case in task.cases(encode_with(model)):
                losses = token_losses(model, [*case.prompt, *case.answer])
                means.append(-losses[len(case.prompt) - 1 :].mean())
            assert score.log_p == pytest.approx(sum(means) / len(means), abs=1e-4)
            assert score.found == sum(score.hits) / task.trials


@pytest.mark.engine
def test_the_base_finds_near_passkeys() -> None:
    with Model(default_base()) as model:
        (score,) = recall(model, [RecallTask("passkey", 64, 2)])
    assert score.found == 1 and score.log_p > -1


def test_the_table_has_a_row_for_each_setting() -> None:
    settings = (Quality("m", "b", "t", 9, 64, k, 10, 10, 1, 0, 0, 1) for k in (0.0, 3.0))
    runs = tuple(
        Run((quality,), TaskScores((), (score(hits),)))
        for quality, hits in zip(settings, ("1111000000", "1110000000"), strict=True)
    )
    found = Evaluation(runs, TaskScores((), (score("1111111100"),)))
    rows = recall_table(found).markdown().splitlines()[2:4]
    assert rows == [
        "| passkey (10) | 64 | no spikes | 80% | 40% | -40 [-65, -2] |  |",
        "| passkey (10) | 64 | k = 3 | 80% | 30% | -50 [-74, -9] | -10 [-31, +14] |",
    ]
    first, second = (run["recall"][0] for run in found.to_json()["runs"])
    assert first["over_first"]["value"] == 0 and second["over_first"]["value"] == pytest.approx(-0.1)
    assert (first["kind"], first["found"], first["hits"][:5]) == ("passkey", 0.4, [True] * 4 + [False])


@pytest.mark.engine
def test_the_command_line_asks_a_tiny_model(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The lighthouse stood at the end of the land. " * 6)
    done = sb_edge(
        "eval", tiny, "--base", tiny, "--text", tmp_path / "text.txt", "--tokens", 40,
        "--recall", "8,1.5w", "--cases", 2, "--json", tmp_path / "found.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Retrieval from the context" in done.stdout
    assert max(map(len, done.stdout.splitlines()[2:])) <= 80
    window = read_header(tiny).integer("attention.sliding_window")
    scores = json.loads((tmp_path / "found.json").read_text())["recall"]
    assert [entry["distance"] for entry in scores] == [8] * 5 + [window * 3 // 2] * 5
    assert all(entry["over_base"]["value"] == 0 for entry in scores)


@pytest.mark.parametrize("value", ["w", "1.5", "3x", "", "1e3w", "0,,1"])
def test_a_bad_distance_is_a_usage_error(value: str) -> None:
    done = sb_edge("eval", "default", "--base", "default-base", "--recall", value)
    assert done.returncode == 2
    assert "--recall" in done.stderr
