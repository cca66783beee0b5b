from __future__ import annotations

import json

import pytest

from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.metadata import default_file_name, load_metadata
from sb_edge.gguf.reader import read_header
from sb_edge.util.errors import CheckpointError

CARD = """---
license: apache-2.0
language:
- en
- zh
base_model: Qwen/Qwen2.5-7B
tags:
- spiking
version: 1.0
---
# A model
"""


def test_model_card_reaches_the_gguf(golden_copy, tmp_path):
    (golden_copy.folder / "README.md").write_text(CARD)
    convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf")
    keys = read_header(tmp_path / "out.gguf").metadata
    assert keys["general.license"] == "apache-2.0"
    assert keys["general.languages"] == ["en", "zh"] and keys["general.tags"] == ["spiking"]
    assert keys["general.base_model.count"] == 1
    assert keys["general.base_model.0.name"] == "Qwen2.5 7B"
    assert keys["general.base_model.0.organization"] == "Qwen"
    assert keys["general.base_model.0.repo_url"] == "https://huggingface.co/Qwen/Qwen2.5-7B"


def test_override_wins(golden_copy, tmp_path):
    (golden_copy.folder / "README.md").write_text(CARD)
    override = tmp_path / "metadata.json"
    values = {
        "general.name": "My Model",
        "general.license": "mit",
        "general.tags": ["x"],
        "general.sampling.temp": 0.5,
    }
    override.write_text(json.dumps(values))
    convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf", metadata_file=override)
    keys = read_header(tmp_path / "out.gguf").metadata
    assert {key: keys[key] for key in values} == values


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"general.nmae": "x"}, "general.nmae: is not a key that can be set; did you mean general.name?"),
        ({"spikingbrain.block_count": 3}, "spikingbrain.block_count: is not a key that can be set"),
        ({"general.architecture": "llama"}, "general.architecture: is not a key that can be set"),
        ({"general.name": 3}, "general.name: has the wrong type (found 3, expected a string)"),
        ({"general.tags": "x"}, "expected a list of strings"),
        ({"general.sampling.top_k": 0.5}, "expected an integer"),
        ({"general.sampling.temp": True}, "expected a number"),
        ({"general.base_models": [{"name": 3}]}, "expected a list of objects"),
        ([], "is not a JSON object"),
    ],
)
def test_bad_overrides(golden_copy, tmp_path, document, problem):
    override = tmp_path / "metadata.json"
    override.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        load_metadata(golden_copy.folder, override, 1000)
    assert "metadata.json" in str(caught.value) and problem in str(caught.value)


def test_override_that_is_missing_or_no_json(golden_copy, tmp_path):
    with pytest.raises(CheckpointError, match="not found"):
        load_metadata(golden_copy.folder, tmp_path / "none.json", 1000)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_metadata(golden_copy.folder, tmp_path / "bad.json", 1000)


@pytest.mark.parametrize(
    "card", ["---\na: [\n---\n", "---\nbase_model: {1: 2}\n---\n", "---\nlicense: 5\ntags: 3\n---\n"]
)
def test_odd_model_cards_are_read_or_refused(golden_copy, tmp_path, card):
    (golden_copy.folder / "README.md").write_text(card)
    try:
        convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf")
    except CheckpointError as error:
        assert "README.md: the model card cannot be read" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("SpikingBrain-7B-sft-v1.0", "SpikingBrain-7B-sft-v1.0-BF16.gguf"),
        ("my model (new)", "My-Model-New-7.6B-BF16.gguf"),
        ("tiny", "Tiny-7.6B-BF16.gguf"),
    ],
)
def test_file_names(tmp_path, folder, expected):
    (tmp_path / folder).mkdir()
    metadata = load_metadata(tmp_path / folder, None, 7_620_000_000)
    assert default_file_name(metadata, "BF16") == expected


def test_file_name_cannot_leave_the_folder(tmp_path):
    override = tmp_path / "m.json"
    override.write_text(json.dumps({"general.finetune": "../../../etc/x", "general.basename": "a/../b"}))
    name = default_file_name(load_metadata(tmp_path, override, 1000), "F16")
    assert "/" not in name and not name.startswith(".")
