"""`sb-edge eval`: a model against itself, against another, and against what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support import sb_edge
from text_checkpoints import around, bpe, model_gguf, write_files

from sb_edge.evaluate.perplexity import perplexity, token_losses
from sb_edge.evaluate.quality import compare_quality
from sb_edge.models.default_model import default, default_base
from sb_edge.runtime.session import Model
from sb_edge.util.errors import InferenceError

pytestmark = pytest.mark.engine

TEXT = "The lighthouse stood at the end of the land. " * 12


def test_a_model_is_as_good_as_itself() -> None:
    found = compare_quality(default_base(), default_base(), TEXT, "text", max_tokens=100, context=64)
    assert (found.ratio, found.kl, found.top1) == (1, 0, 1)
    assert found.tokens == 98  # two chunks, the first token of each is given


def test_the_figures_are_those_of_the_two_models() -> None:
    with Model(default()) as model, Model(default_base()) as base:
        alone = [perplexity(one, TEXT, max_tokens=60).value for one in (model, base)]
    found = compare_quality(default(), default_base(), TEXT, "text", max_tokens=60, context=2048)
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


def test_every_chunk_begins_with_bos(with_bos: Path) -> None:
    text = "the bird sings <|stop|> and the tree stands and " * 3
    found = compare_quality(with_bos, with_bos, text, "text", max_tokens=60, context=16)
    with Model(with_bos) as model:
        tokens = model.tokenize(text, add_special=False, parse_special=False)[:60]
        assert not {300, 301} & set(tokens)
        chunks = [[301, *tokens[start : start + 15]] for start in range(0, 60, 15)]
        nll = np.concatenate([token_losses(model, chunk) for chunk in chunks])
    assert found.tokens == len(nll) == 60
    assert found.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-6)


def test_a_base_that_begins_otherwise_is_refused(with_bos: Path, tmp_path: Path) -> None:
    write_files(
        tmp_path / "other",
        tokenizer_json=bpe(["the", " bird"], ["<|stop|>", "<|start|>"]),
        tokenizer_config_json={"eos_token": "<|stop|>"},
    )
    other = model_gguf(tmp_path / "other")
    with pytest.raises(InferenceError, match="a different vocabulary from its base"):
        compare_quality(with_bos, other, "the bird " * 9, "text", max_tokens=60, context=16)


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
