"""What layers retrieve: limits, scores, choice, table and picture."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import click
import pytest
import torch
from scipy.stats import spearmanr
from support import exit_code, sb_edge

from sb_edge.cli.layer_lists import parse_layers
from sb_edge.distill.base import load_base
from sb_edge.distill.layer_recall import LayerRecall, choose_layers, measure_layers, recall_cases, score_cases
from sb_edge.distill.layer_table import layer_table, plot_layers
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.evaluate.recall_cases import FILLER, dictionary_case, facts_case, passkey_case
from sb_edge.models.default_model import default_base
from sb_edge.util.errors import ConfigError

CPU = torch.device("cpu")
FIGURES = Path(__file__).parents[1] / "data" / "layer_recall.csv"
"""Log probabilities of a passkey's first two tokens and of a dictionary's answers while one layer of
SmolLM2-135M-Instruct sees 16 tokens, of another program with other prompts; nothing limited: -1."""


@pytest.fixture(scope="module")
def tiny_recall(tiny_base: Path) -> LayerRecall:
    return measure_layers(load_base(tiny_base, CPU), cases=2, head_layers=(1,))


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def test_cases_hold_their_answers_at_the_distance_asked_for() -> None:
    rng = random.Random(0)
    for case in (
        passkey_case(bytes_of, rng, 300),
        dictionary_case(bytes_of, rng, 10, 300),
        facts_case(bytes_of, rng, 300),
    ):
        told, asked, answer = (bytes(part).decode() for part in (case.told, case.asked, case.answer))
        assert answer in told[:-300].replace("\n", " ") or answer.strip() in told[:-300]
        assert answer not in told[-300:]
        assert answer.strip() not in asked
        assert any(sentence in told[-300:] for sentence in FILLER)
        assert bytes(case.prompt).decode() == told + asked


def test_cases_are_a_function_of_the_seed() -> None:
    made = [recall_cases(bytes_of, passkeys=2, dictionaries=2, facts=2, seed=seed) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_a_score_is_that_of_the_plain_computation(tiny_base: Path) -> None:
    """Cases of several lengths in one batch, against one pass for each."""
    base = load_base(tiny_base, CPU)
    encode = Tokenizer(base.reader).encode
    cases = recall_cases(encode, passkeys=1, dictionaries=2, facts=2)
    log_p, found = score_cases(base.model, cases)
    for kind in log_p:
        values, right = [], []
        for case in (case for case in cases if case.kind == kind):
            with torch.no_grad():
                logits = base.model(torch.tensor([case.prompt + case.answer]))[0]
            rows = logits[len(case.prompt) - 1 : -1].log_softmax(-1)
            wanted = torch.tensor(case.answer)
            values.append(float(rows.gather(1, wanted[:, None]).mean()))
            right.append(float(bool((rows.argmax(-1) == wanted).all())))
        assert log_p[kind] == pytest.approx(sum(values) / len(values), abs=1e-4)
        assert found[kind] == sum(right) / len(right)


def test_a_limited_layer_is_a_layer_with_a_window(tiny_base: Path, tiny_recall: LayerRecall) -> None:
    """The shared passes give what a model with that window in one layer gives."""
    base = load_base(tiny_base, CPU)
    cases = recall_cases(Tokenizer(base.reader).encode, passkeys=1, dictionaries=2, facts=2)
    whole, _ = score_cases(base.model, cases)
    assert tiny_recall.whole.log_p == pytest.approx(whole, abs=1e-4)
    for entry in tiny_recall.layers:
        attention = base.model.model.layers[entry.layer].attn
        attention.window, before = 16, attention.window
        limited, _ = score_cases(base.model, cases)
        attention.window = before
        assert entry.score.log_p == pytest.approx(limited, abs=1e-4)
        lost = [whole[kind] - limited[kind] for kind in whole]
        assert entry.damage == pytest.approx(sum(lost) / len(lost), abs=1e-4)


def test_heads_are_limited_one_by_one(tiny_recall: LayerRecall) -> None:
    assert [(entry.layer, entry.head) for entry in tiny_recall.heads] == [(1, head) for head in range(4)]
    scores = [entry.score.loss for entry in (*tiny_recall.heads, tiny_recall.layers[1])]
    assert len({round(score, 7) for score in (*scores, tiny_recall.whole.loss)}) == 6


def test_heads_of_a_group_are_limited_together(tiny_base: Path) -> None:
    """Two query heads at a time: the layer's window is that of both groups together."""
    found = measure_layers(load_base(tiny_base, CPU), cases=1, head_layers=(1,), grouped=True)
    assert [(entry.layer, entry.head) for entry in found.heads] == [(1, 0), (1, 1)]
    scores = [entry.score.loss for entry in (*found.heads, found.layers[1])]
    assert len({round(score, 7) for score in (*scores, found.whole.loss)}) == 4


def test_table_and_picture(tiny_recall: LayerRecall, tmp_path: Path) -> None:
    text = layer_table(tiny_recall, tiny_recall.layers).markdown()
    assert text.count("\n| layer ") == 4
    assert f"{tiny_recall.layers[2].damage:.3f}" in text
    plot_layers(tmp_path / "layers.png", tiny_recall)
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_layers_that_retrieve_least_are_chosen(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path))
    chosen = choose_layers(tiny_base, 2)
    (kept,) = (tmp_path / "layers").iterdir()
    found = json.loads(kept.read_text())
    costs = [entry["damage"] + entry["score"]["loss"] for entry in found["layers"]]
    assert max(costs[layer] for layer in chosen) <= min(
        costs[layer] for layer in range(4) if layer not in chosen
    )
    assert choose_layers(tiny_base, 0.5) == chosen == tuple(sorted(chosen))
    with pytest.raises(ConfigError, match=r"has too few layers \(found 4, expected at least 5\)"):
        choose_layers(tiny_base, 5)
    target = tmp_path / "student"
    assert exit_code("transplant", tiny_base, "-o", target, "--gla-layers", "auto:2") == 0
    config = json.loads((target / "config.json").read_text())
    assert set(config["attn_layers"]) == set(range(4)) - set(chosen)


@pytest.mark.parametrize("value", ["auto:", "auto:0", "auto:1.5", "auto:-1", "auto:many", "auto:nan"])
def test_a_bad_number_of_layers_is_a_usage_error(value: str, tiny_base: Path, tmp_path: Path) -> None:
    done = sb_edge("transplant", tiny_base, "-o", tmp_path / "x", "--gla-layers", value)
    assert done.returncode == 2
    assert "is not auto: and a number of layers or a share of them" in done.stderr


@pytest.mark.parametrize("value", ["", "-", "3-1", "0--1", "x", "0-99999999999", "9" * 5000])
def test_what_is_no_list_of_layers(value: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a list such as"):
        parse_layers(value)


@pytest.mark.engine
@pytest.mark.slow
def test_the_layers_of_the_default_base_rank_as_measured_elsewhere() -> None:
    """A third of the cases that `sb-edge layers` takes."""
    found = measure_layers(load_base(default_base(), CPU), cases=12, bf16=True)
    with FIGURES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole, limited = rows[0], rows[1:]
    lost = [sum(float(whole[key]) - float(row[key]) for key in ("passkey", "dictionary")) for row in limited]
    correlation = spearmanr([entry.damage for entry in found.layers], lost).statistic
    print(f"rank correlation {correlation:.3f}")
    assert correlation >= 0.7
    assert max(found.layers, key=lambda entry: entry.damage).layer == 18
    assert all(math.isfinite(entry.score.loss) for entry in found.layers)
