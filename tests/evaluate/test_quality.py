"""`sb-edge eval`: a model against itself, against another, and against what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from support import sb_edge

from sb_edge.evaluate.perplexity import perplexity
from sb_edge.evaluate.quality import compare_quality
from sb_edge.models.default_model import default, default_base
from sb_edge.runtime.session import Model

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
