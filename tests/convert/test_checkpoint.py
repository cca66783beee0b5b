from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sb_edge.arch.config import PRESETS, load_config
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.safetensors_file import read_safetensors_header
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.util.errors import CheckpointError, ConfigError, OutputError


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_what_the_safetensors_library_reads(data):
    checkpoint = Checkpoint.open(data / "gla_swa")
    with safe_open(data / "gla_swa" / "model.safetensors", framework="numpy") as file:
        assert sorted(checkpoint.names) == sorted(file.keys())
        for name in checkpoint.names:
            expected = file.get_tensor(name)
            assert checkpoint.info(name).shape == expected.shape
            np.testing.assert_array_equal(checkpoint.read(name), expected)


@pytest.mark.parametrize("max_bytes", [1, 100, 4096, 1 << 20])
@pytest.mark.parametrize("multiple", [1, 32])
def test_chunks_join_to_the_tensor(data, max_bytes, multiple):
    checkpoint = Checkpoint.open(data / "gla_swa")
    for name in ("lm_head.weight", "model.layers.0.attn.g_norm.weight"):
        pieces = [piece.copy() for piece in checkpoint.chunks(name, max_bytes, multiple=multiple)]
        assert all(piece.size % multiple == 0 for piece in pieces)
        assert all(piece.nbytes <= max(max_bytes, 4 * multiple) for piece in pieces)
        np.testing.assert_array_equal(np.concatenate(pieces), checkpoint.read(name).reshape(-1))


def test_two_buffers_keep_the_previous_piece(data):
    checkpoint = Checkpoint.open(data / "gla_swa")
    expected = [piece.copy() for piece in checkpoint.chunks("lm_head.weight", 4096)]
    pieces = checkpoint.chunks("lm_head.weight", 4096, buffers=2)
    previous = next(pieces)
    for number, piece in enumerate(pieces):
        np.testing.assert_array_equal(previous, expected[number])
        previous = piece


def test_shards_read_like_one_file(data, sharded_copy):
    single, sharded = Checkpoint.open(data / "gla_swa"), Checkpoint.open(sharded_copy.folder)
    assert sorted(sharded.names) == sorted(single.names)
    for name in single.names:
        np.testing.assert_array_equal(sharded.read(name), single.read(name))


def test_unknown_name(data):
    with pytest.raises(CheckpointError, match=re.escape("model.nothing: there is no such tensor")):
        Checkpoint.open(data / "gla_swa").read("model.nothing")


def test_folder_problems(tmp_path, data):
    assert "not found" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(data / "gla_swa" / "config.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json: not found" in refusal(empty)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused(golden_copy, name):
    golden_copy.weights.rename(golden_copy.folder / name)
    line = refusal(golden_copy.folder)
    assert name in line and "pickled" in line and "safe_serialization" in line


def test_no_weights_at_all(golden_copy):
    golden_copy.weights.unlink()
    assert "has no safetensors file" in refusal(golden_copy.folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "llama"}, "model_type: unknown architecture (found 'llama'"),
        ({"use_short_conv": True}, "use_short_conv: short convolutions are not supported"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"attn_layers": [1, 9]}, "attn_layers: layer 9"),
        ({"sliding_window": None}, "sliding_window: field required (found nothing)"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
    ],
)
def test_wrong_config_values(golden_copy, changes, field):
    golden_copy.edit_config(**changes)
    with pytest.raises(ConfigError) as caught:
        Checkpoint.open(golden_copy.folder)
    assert "config.json" in str(caught.value) and field in str(caught.value)


def test_truncation_anywhere_is_named(golden_copy):
    whole = golden_copy.weights.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    cuts = [
        0,
        1,
        7,
        8,
        9,
        header_end // 2,
        header_end - 1,
        header_end,
        header_end + 1,
        len(whole) // 2,
        len(whole) - 1,
    ]
    for cut in cuts:
        golden_copy.weights.write_bytes(whole[:cut])
        line = refusal(golden_copy.folder)
        assert "model.safetensors" in line and "truncated" in line, (cut, line)


def test_file_that_goes_on(golden_copy):
    golden_copy.weights.write_bytes(golden_copy.weights.read_bytes() + b"\0")
    assert "has data after its last tensor" in refusal(golden_copy.folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{ ", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "a": {}}', "a: is listed twice"),
        (b'{"a": 3}', "a: is not a JSON object"),
        (b'{"__metadata__": 3}', "__metadata__: is not a JSON object"),
    ],
)
def test_corrupt_json(golden_copy, text, problem):
    golden_copy.weights.write_bytes(len(text).to_bytes(8, "little") + text)
    assert problem in refusal(golden_copy.folder)


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**64 - 1])
def test_impossible_header_length(golden_copy, length):
    golden_copy.weights.write_bytes(length.to_bytes(8, "little") + b"{}")
    line = refusal(golden_copy.folder)
    assert "not a safetensors file" in line or "truncated" in line


NAME = "model.norm.weight"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": "F64"}, "a type that is not supported (found F64, expected F32, F16 or BF16); cast"),
        ({"dtype": "Q7"}, "an unknown type"),
        ({"dtype": None}, "an unknown type"),
        ({"dtype": ["F32"]}, "an unknown type"),
        ({"shape": [-1]}, "no valid shape"),
        ({"shape": "128"}, "no valid shape"),
        ({"shape": [True]}, "no valid shape"),
        ({"shape": [64]}, "the size of its data does not fit its shape"),
        ({"shape": [2**62, 2**62]}, "the size of its data does not fit its shape"),
        ({"data_offsets": [0]}, "no valid data_offsets"),
        ({"data_offsets": [0.0, 4.0]}, "no valid data_offsets"),
        ({"data_offsets": [512, 0]}, "the size of its data does not fit its shape"),
        ({"data_offsets": [0, 512]}, "overlaps"),
        ({"data_offsets": [10**12, 10**12 + 512]}, "gap"),
    ],
)
def test_corrupt_entries(golden_copy, changes, problem):
    golden_copy.edit_header(lambda header: header[NAME].update(changes))
    line = refusal(golden_copy.folder)
    assert "model.safetensors" in line and problem in line


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused(golden_path, tmp_path_factory, data):
    raw = bytearray(golden_path.read_bytes()[:8192])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError):  # cut short, so it can never be right
        read_safetensors_header(path)


@pytest.fixture(scope="module")
def golden_path():
    return Path(__file__).parents[1] / "data" / "gla_swa" / "model.safetensors"


def edit_index(folder: Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_missing_shard(sharded_copy):
    (sharded_copy.folder / SHARD_2).unlink()
    line = refusal(sharded_copy.folder)
    assert SHARD_2 in line and "a shard is missing" in line


def test_missing_index(sharded_copy):
    (sharded_copy.folder / "model.safetensors.index.json").unlink()
    assert "index of the shards is missing" in refusal(sharded_copy.folder)


def test_index_names_a_tensor_that_is_not_there(sharded_copy):
    edit_index(sharded_copy.folder, lambda index: index["weight_map"].update({"model.extra": SHARD_1}))
    line = refusal(sharded_copy.folder)
    assert SHARD_1 in line and "model.extra: is in the index, but not in the shard" in line


def test_index_forgets_a_tensor(sharded_copy):
    edit_index(sharded_copy.folder, lambda index: index["weight_map"].pop(NAME))
    line = refusal(sharded_copy.folder)
    assert NAME in line and "not in the index" in line


def test_tensor_in_two_shards(sharded_copy):
    shard = sharded_copy.folder / SHARD_1
    (sharded_copy.folder / SHARD_2).write_bytes(shard.read_bytes())
    line = refusal(sharded_copy.folder)
    assert "is in two shards" in line and SHARD_2 in line


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 3, "model.bin"])
def test_index_must_name_plain_files(sharded_copy, shard):
    edit_index(sharded_copy.folder, lambda index: index["weight_map"].update({NAME: shard}))
    assert "is not the name of a shard" in refusal(sharded_copy.folder)


@pytest.mark.parametrize("weight_map", [None, [], {}])
def test_index_without_a_map(sharded_copy, weight_map):
    edit_index(sharded_copy.folder, lambda index: index.update(weight_map=weight_map))
    assert "weight_map: has no weight map" in refusal(sharded_copy.folder)


def test_file_that_shrinks_while_it_is_read(golden_copy):
    checkpoint = Checkpoint.open(golden_copy.folder)
    with golden_copy.weights.open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: ends inside a tensor"):
        list(checkpoint.chunks("model.norm.weight"))


SHAPES = {
    "a": ((3, 5), np.dtype(np.float32)),
    "b": ((7,), np.dtype(ml_dtypes.bfloat16)),
    "c": ((2, 2), np.dtype(np.float16)),
    "empty": ((0, 4), np.dtype(np.float32)),
}


@pytest.mark.parametrize("max_shard_bytes", [10**9, 64, 1])
def test_writer_round_trip(tmp_path, max_shard_bytes):
    values = {
        name: np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for name, (shape, dtype) in SHAPES.items()
    }
    folder = tmp_path / "out"
    with CheckpointWriter(folder, PRESETS["tiny"], SHAPES, max_shard_bytes) as writer:
        for name in reversed(values):
            writer.write(name, values[name])
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config == PRESETS["tiny"].model_copy(update={"attn_layers": [1, 3]})
    for name, expected in values.items():
        assert checkpoint.read(name).dtype == expected.dtype
        np.testing.assert_array_equal(checkpoint.read(name), expected)
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="numpy") as file:
            assert set(file.keys()) <= set(SHAPES)


def test_writer_writes_the_config_it_was_given(tmp_path):
    with CheckpointWriter(tmp_path / "out", PRESETS["7b"], {}) as writer:
        assert writer.nbytes == 0
    assert load_config(tmp_path / "out" / "config.json").vocab_size == PRESETS["7b"].vocab_size


@pytest.mark.parametrize(
    ("name", "array", "problem"),
    [
        ("a", np.zeros((5, 3), np.float32), "wrong shape"),
        ("a", np.zeros((3, 5), np.float16), "wrong type"),
        ("z", np.zeros(1, np.float32), "is not in the list of tensors"),
    ],
)
def test_writer_refuses_what_was_not_announced(tmp_path, name, array, problem):
    with (
        pytest.raises(CheckpointError, match=problem),
        CheckpointWriter(tmp_path / "out", PRESETS["tiny"], SHAPES) as writer,
    ):
        writer.write(name, array)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_twice_and_wrong_sizes(tmp_path):
    shapes = {"a": SHAPES["a"]}
    with CheckpointWriter(tmp_path / "out", PRESETS["tiny"], shapes) as writer:
        for pieces in ([np.zeros(14, np.float32)], [np.zeros(9, np.float32)] * 2):
            with pytest.raises(CheckpointError, match="wrong size"):
                writer.write_chunks("a", pieces)
        writer.write("a", np.zeros((3, 5), np.float32))
        with pytest.raises(CheckpointError, match="already written"):
            writer.write("a", np.zeros((3, 5), np.float32))


def test_writer_leaves_nothing_when_incomplete(tmp_path):
    with (
        pytest.raises(CheckpointError, match="a: was not written"),
        CheckpointWriter(tmp_path / "out", PRESETS["tiny"], {"a": SHAPES["a"]}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_writer_keeps_an_earlier_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match="already exists"),
        CheckpointWriter(tmp_path / "out", PRESETS["tiny"], {}),
    ):
        pass
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_rotary_parameters_of_transformers_5(golden_copy):
    golden_copy.edit_config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert Checkpoint.open(golden_copy.folder).config.rope_theta == 5e5
    golden_copy.edit_config(rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0})
    assert "rope_scaling: scaled rotary frequencies are not supported" in refusal(golden_copy.folder)
