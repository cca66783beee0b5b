"""Other keys in a GGUF: the rest is unchanged, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.gguf.reader import read_header, read_layout
from sb_edge.gguf.rewrite import set_number, with_metadata, with_tensors
from sb_edge.gguf.writer import PlannedTensor
from sb_edge.util.errors import GgufError, OutputError

PLAN = SpikePlan(("attn_q", "ffn_down"), 3.0, ((3.5, 0.0),) * 4, query_k=2.0, kv_rounding=True)


@pytest.fixture
def many_types(tmp_path: Path) -> Path:
    """A GGUF with a key of every type, arrays of them, text that is not UTF-8 and tensors of odd sizes."""
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "spikingbrain")
    writer.add_custom_alignment(64)
    kinds = gguf.GGUFValueType
    for kind in (kinds.UINT8, kinds.INT8, kinds.UINT16, kinds.INT16, kinds.UINT32, kinds.INT32):
        writer.add_key_value(f"n.{kind.name}", 3, kind)
        writer.add_key_value(f"a.{kind.name}", [1, 2], kinds.ARRAY, kind)
    for kind in (kinds.FLOAT32, kinds.FLOAT64):
        writer.add_key_value(f"n.{kind.name}", 0.1, kind)
        writer.add_key_value(f"a.{kind.name}", [0.1, -2.5], kinds.ARRAY, kind)
    for kind in (kinds.UINT64, kinds.INT64):
        writer.add_key_value(f"n.{kind.name}", 2**40, kind)
    writer.add_bool("flag", True)
    writer.add_array("flags", [True, False])
    writer.add_array("texts", ["é", "", "x"])
    writer.add_key_value("broken", b"\xff\xfe", kinds.STRING)
    writer.add_string("spikingbrain.spike.k", "of another type")
    for name, size in (("a", 3), ("b", 5), ("c", 64)):
        writer.add_tensor(name, np.arange(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields(path: Path) -> dict[str, tuple[list[str], bytes]]:
    """Every key as gguf-py reads it: types, and the bytes of the value."""
    return {
        name: ([kind.name for kind in field.types], b"".join(part.tobytes() for part in field.parts))
        for name, field in gguf.GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    }


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_no_change_gives_the_same_file(many_types, golden_gguf, tmp_path):
    for source in (many_types, golden_gguf):
        with_metadata(source, tmp_path / "copy.gguf", values={})
        assert (tmp_path / "copy.gguf").read_bytes() == source.read_bytes()


def test_the_rest_is_untouched(many_types, tmp_path):
    target = tmp_path / "out.gguf"
    with_spike_plan(many_types, target, PLAN)
    before, after = fields(many_types), fields(target)
    kept = [name for name in before if ".spike." not in name]
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}
    assert [name for name in after if name in before] == list(before)
    assert tensors(target) == tensors(many_types)
    assert all(entry.offset % 64 == 0 for entry in read_header(target).tensors)


def test_types_of_new_keys(golden_gguf, tmp_path):
    target = tmp_path / "out.gguf"
    with_spike_plan(golden_gguf, target, PLAN)
    types = {name: kinds for name, (kinds, _) in fields(target).items() if ".spike." in name}
    assert types == {
        "spikingbrain.spike.projections": ["ARRAY", "STRING"],
        "spikingbrain.spike.k": ["FLOAT32"],
        "spikingbrain.spike.query_k": ["FLOAT32"],
        "spikingbrain.spike.kv_rounding": ["BOOL"],
        "spikingbrain.spike.layer_k": ["ARRAY", "FLOAT32"],
    }
    assert SpikePlan.from_metadata(read_header(target).metadata) == PLAN


def test_setting_and_removing_gives_the_first_file(golden_gguf, tmp_path):
    target = tmp_path / "out.gguf"
    with_spike_plan(golden_gguf, target, PLAN)
    with_spike_plan(target, target, SpikePlan(k=2.0))  # in place; a plan without layer_k drops that key
    assert SpikePlan.from_metadata(read_header(target).metadata) == SpikePlan(k=2.0)
    with_spike_plan(target, target, None)
    assert target.read_bytes() == golden_gguf.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_the_converter_writes_the_same_keys(data, golden_gguf, tmp_path):
    convert_checkpoint(data / "gla_swa", tmp_path / "a.gguf", outtype="f32", spike_k=2.0)
    with_spike_plan(golden_gguf, tmp_path / "b.gguf", SpikePlan(k=2.0))
    ours, theirs = fields(tmp_path / "b.gguf"), fields(tmp_path / "a.gguf")
    assert {key: value for key, value in ours.items() if ".spike." in key} == {
        key: value for key, value in theirs.items() if ".spike." in key
    }


def test_file_without_tensors(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "keys.gguf", "spikingbrain")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with_metadata(tmp_path / "keys.gguf", tmp_path / "out.gguf", values={"x": [1.0, 2.0]})
    assert read_header(tmp_path / "out.gguf").metadata["x"].tolist() == [1, 2]


def test_refusals(data, golden_gguf, tmp_path):
    target = tmp_path / "out.gguf"
    split = convert_checkpoint(data / "gla_swa", tmp_path / "s.gguf", split_max_size=300_000).files
    with pytest.raises(GgufError, match=r"in several parts .*llama-gguf-split --merge"):
        with_metadata(split[0], target, values={})
    with pytest.raises(GgufError, match=r"general\.alignment: would move the tensors"):
        with_metadata(golden_gguf, target, values={}, removed=["general.alignment"])
    with pytest.raises(GgufError, match="not found"):
        with_spike_plan(tmp_path / "none.gguf", target, None)
    with pytest.raises(OutputError, match="the folder does not exist"):
        with_metadata(golden_gguf, tmp_path / "no" / "out.gguf", values={})
    for value in (3, [1.0, "x"], b"bytes"):
        with pytest.raises(TypeError):
            with_metadata(golden_gguf, target, values={"key": value})
    assert not target.exists()


def test_a_failure_keeps_the_earlier_file(golden_gguf, tmp_path):
    target = tmp_path / "out.gguf"
    target.write_bytes(b"earlier")
    source = tmp_path / "cut.gguf"
    shutil.copyfile(golden_gguf, source)
    with source.open("r+b") as file:
        file.truncate(read_layout(source).data + 100)
    with pytest.raises(GgufError, match="is truncated"):
        with_metadata(source, target, values={"x": 1.0})
    assert target.read_bytes() == b"earlier"


def test_tensors_are_added_after_odd_ends(many_types: Path, tmp_path: Path) -> None:
    with many_types.open("ab") as file:
        file.write(b"what nobody reads")
    planned = [
        PlannedTensor("d", "", (2, 3), gguf.GGMLQuantizationType.F32),
        PlannedTensor("e", "", (5,), gguf.GGMLQuantizationType.F16),
    ]
    target = tmp_path / "out.gguf"
    values = {"spikingbrain.spike.k": 2.0}
    with_tensors(
        many_types, target, planned, lambda tensor: [np.full(tensor.nbytes, 1, np.uint8)], values=values
    )
    before, after = (gguf.GGUFReader(path).tensors for path in (many_types, target))
    assert [tensor.name for tensor in after] == ["a", "b", "c", "d", "e"]
    for old, new in zip(before, after, strict=False):
        assert old.data.tobytes() == new.data.tobytes()
    assert after[3].data.shape == (2, 3) and set(after[4].data.tobytes()) == {1}
    assert read_header(target).metadata["spikingbrain.spike.k"] == 2.0
    wrong = [PlannedTensor("d", "", (3,), gguf.GGMLQuantizationType.F32)]
    with pytest.raises(OutputError, match="not have the planned size"):
        with_tensors(many_types, tmp_path / "no.gguf", wrong, lambda _: [np.zeros(1, np.uint8)], values={})
    assert not (tmp_path / "no.gguf").exists()


def test_a_number_is_changed_in_place(many_types: Path) -> None:
    before = many_types.read_bytes()
    set_number(many_types, "n.FLOAT32", 0.75)
    after = many_types.read_bytes()
    assert read_header(many_types).metadata["n.FLOAT32"] == 0.75
    assert sum(old != new for old, new in zip(before, after, strict=True)) <= 4
    for key in ("absent", "texts", "n.INT32", "n.FLOAT64"):
        with pytest.raises(GgufError, match=f"{key}: is not an f32 key"):
            set_number(many_types, key, 1)
