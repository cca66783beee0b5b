"""The server answers edited prompts from its cache as it answers them without."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefix_edits import SETTINGS, differences

from sb_edge.arch.layer_map import vocabulary_size
from sb_edge.gguf.reader import read_header
from sb_edge.models.registry import resolve_gguf

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("setting", SETTINGS)
def test_edited_prompts_of_a_float32_model(tiny: Path, setting: str) -> None:
    options = ["-c", "4096", "-ctk", "f32", "-ctv", "f32", *SETTINGS[setting]]
    assert differences(tiny, options, 320, 200, lengths=(1, 2, 5, 30, 80)) == []


def test_edited_prompts_of_the_default_model() -> None:
    model = resolve_gguf("default")
    n_vocab = vocabulary_size(read_header(model))
    found = differences(model, ["-c", "4096", "--swa-full"], n_vocab, 40, lengths=(1, 2, 5, 30))
    assert [each for each in found if not each.is_rounding] == []
