"""`sb-edge eval`: a model against itself, against another, and against what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support import sb_edge
from text_checkpoints import around, bpe, model_gguf, write_files

from sb_edge.distill.text.decontamination import held_out_hashes, holds
from sb_edge.evaluate.evaluation import Evaluation, Run, TaskScores
from sb_edge.evaluate.evaluation_table import evaluation_table
from sb_edge.evaluate.perplexity import KINDS, evaluation_texts, perplexity, token_losses
from sb_edge.evaluate.quality import Quality, compare_quality, mean_quality
from sb_edge.models.default_model import default, default_base
from sb_edge.runtime.session import Model
from sb_edge.util.errors import InferenceError

TEXT = "The lighthouse stood at the end of the land. " * 12


@pytest.mark.engine
def test_a_model_is_as_good_as_itself() -> None:
    with Model(default_base()) as one, Model(default_base()) as other:
        found = compare_quality(one, other, TEXT, "text", max_tokens=100, context=64)
    assert (found.ratio, found.kl, found.top1) == (1, 0, 1)
    assert found.tokens == 98  # two chunks, the first token of each is given


@pytest.mark.engine
def test_the_figures_are_those_of_the_two_models() -> None:
    with Model(default()) as model, Model(default_base()) as base:
        alone = [perplexity(one, TEXT, max_tokens=60).value for one in (model, base)]
        found = compare_quality(model, base, TEXT, "text", max_tokens=60, context=2048)
    np.testing.assert_allclose([found.perplexity, found.base_perplexity], alone, rtol=2e-2)
    assert found.ratio == pytest.approx(found.perplexity / found.base_perplexity)
    assert found.kl > 0 and math.isfinite(found.ratio_error)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts begin with BOS."""
    folder = tmp_path_factory.mktemp("bos") / "model"
    post = around(before=[("<|start|>", 301)])
    tokenizer = bpe(["the", " bird"], ["<|stop|>", "<|start|>"], post_processor=post)
    write_files(folder, tokenizer_json=tokenizer, tokenizer_config_json={"eos_token": "<|stop|>"})
    return model_gguf(folder)


@pytest.mark.engine
def test_every_chunk_begins_with_bos(with_bos: Path) -> None:
    text = "the bird sings <|stop|> and the tree stands and " * 3
    with Model(with_bos) as model, Model(with_bos) as same:
        found = compare_quality(model, same, text, "text", max_tokens=60, context=16)
        tokens = model.tokenize(text, add_special=False, parse_special=False)[:60]
        assert not {300, 301} & set(tokens)
        chunks = [[301, *tokens[start : start + 15]] for start in range(0, 60, 15)]
        nll = np.concatenate([token_losses(model, chunk) for chunk in chunks])
    assert found.tokens == len(nll) == 60
    assert found.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-6)


@pytest.mark.engine
def test_a_base_that_begins_otherwise_is_refused(with_bos: Path, tmp_path: Path) -> None:
    write_files(
        tmp_path / "other",
        tokenizer_json=bpe(["the", " bird"], ["<|stop|>", "<|start|>"]),
        tokenizer_config_json={"eos_token": "<|stop|>"},
    )
    other = model_gguf(tmp_path / "other")
    with (
        Model(with_bos) as model,
        Model(other) as base,
        pytest.raises(InferenceError, match="a different vocabulary from its base"),
    ):
        compare_quality(model, base, "the bird " * 9, "text", max_tokens=60, context=16)


@pytest.mark.engine
def test_the_command_line(tmp_path: Path, golden_gguf: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    done = sb_edge(
        "eval", "default", "--base", "default-base", "--text", tmp_path / "t.txt", "--tokens", 40,
        "--json", "-", "--spike-k", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"perplexity", "base_perplexity", "ratio", "kl"} <= document.keys()
    assert document["spikes"] == 0
    (tmp_path / "empty.txt").write_text("")
    short = sb_edge("eval", "default", "--base", "default-base", "--text", tmp_path / "empty.txt")
    assert (short.returncode, short.stderr.count("\n")) == (1, 1)
    assert "too short" in short.stderr
    other = sb_edge("eval", golden_gguf, "--base", "default-base", "--text", tmp_path / "t.txt")
    assert other.returncode == 1
    assert "vocabulary" in other.stderr


def quality(text: str, ratio: float, error: float = 0.0) -> Quality:
    """A model on one text, 10 times its ratio in perplexity."""
    return Quality("m.gguf", "b.gguf", text, 100, 64, None, 10 * ratio, 10, ratio, error, 0.1 * ratio, 0.5)


def test_the_mean_over_texts_is_geometric() -> None:
    mean = mean_quality([quality("prose", 1.0, 0.03), quality("code", 1.21, 0.0484)])
    assert (mean.ratio, mean.perplexity, mean.base_perplexity) == pytest.approx((1.1, 11, 10))
    assert mean.ratio_error == pytest.approx(1.1 * math.hypot(0.03, 0.04) / 2)
    assert (mean.tokens, mean.text) == (200, "prose, code")
    assert mean.kl == pytest.approx(0.1105)
    assert mean_quality([quality("prose", 1.2)]) == quality("prose", 1.2)


def test_the_table_has_a_row_for_each_kind_of_text() -> None:
    run = Run((quality("prose", 1.0), quality("code", 1.21)), TaskScores((), ()))
    found = Evaluation((run,), TaskScores((), ()))
    assert evaluation_table(found).markdown().splitlines()[2:] == [
        "| perplexity | 10.000 | 11.000 |",
        "| over the base's |  | 1.1000 |",
        "| - prose (100) |  | 1.0000 |",
        "| - code (100) |  | 1.2100 |",
        "| KL |  | 0.1105 |",
    ]
    document = found.to_json()
    assert [text["ratio"] for text in document["texts"]] == [1.0, 1.21]
    assert document["ratio"] == document["runs"][0]["ratio"] == pytest.approx(1.1)


def test_evaluation_texts_are_never_trained_on() -> None:
    hashes = held_out_hashes()
    for kind, text in evaluation_texts().items():
        longest = max(text.split("\n\n"), key=len)
        assert holds(f"Before.\n\n{longest}\n\nAfter.", hashes), kind


@pytest.mark.engine
def test_evaluation_texts_are_long_enough() -> None:
    texts = evaluation_texts()
    assert tuple(texts) == KINDS
    with Model(default_base()) as model:
        assert min(len(model.tokenize(text)) for text in texts.values()) >= 3000
