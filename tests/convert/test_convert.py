from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest

from sb_edge.arch.config import PRESETS
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import init_checkpoint, write_random_checkpoint
from sb_edge.gguf.reader import read_header
from sb_edge.util.errors import CheckpointError, OutputError

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read_values(header, name) -> np.ndarray:
    """A tensor of a GGUF as float32, located by our header, decoded by gguf-py."""
    entry = next(tensor for tensor in header.tensors if tensor.name == name)
    raw = np.fromfile(entry.file, np.uint8, entry.nbytes, offset=entry.offset)
    if entry.type == "Q8_0":
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0).reshape(entry.shape)
    return raw.view(TYPES[entry.type]).astype(np.float32).reshape(entry.shape)


def folder_listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_golden_values_arrive(data, tmp_path, outtype):
    report = convert_checkpoint(data / "gla_swa", tmp_path / "out.gguf", outtype=outtype)
    header = read_header(tmp_path / "out.gguf")
    checkpoint = Checkpoint.open(data / "gla_swa")
    _, table = account_for_tensors(checkpoint)
    assert report.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert [tensor.name for tensor in header.tensors] == [spec.gguf_name for spec in table.values()]
    for name, spec in table.items():
        expected = checkpoint.read(name)
        found = read_values(header, spec.gguf_name)
        kind = next(tensor.type for tensor in header.tensors if tensor.name == spec.gguf_name)
        assert kind == ("F32" if spec.keep_f32 else outtype.upper())
        if kind == "Q8_0":
            blocks = expected.reshape(-1, 32)
            step = np.abs(blocks).max(1, keepdims=True) / 127
            # half a step of the int8, and the float16 scale's own rounding
            allowed = 0.5 * step + np.abs(blocks) * 2**-11 + 1e-7
            assert (np.abs(found.reshape(-1, 32) - blocks) <= allowed * 1.001).all()
        else:
            np.testing.assert_array_equal(found, expected.astype(TYPES[kind]).astype(np.float32))


def test_gguf_py_reads_the_same_file(data, tmp_path):
    convert_checkpoint(data / "gla_swa", tmp_path / "out.gguf", outtype="f16")
    reader, header = gguf.GGUFReader(tmp_path / "out.gguf"), read_header(tmp_path / "out.gguf")
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in header.tensors]
    for theirs, ours in zip(reader.tensors, header.tensors, strict=True):
        assert theirs.data_offset == ours.offset and theirs.n_bytes == ours.nbytes
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == list(header.metadata)


def test_keys(golden_gguf):
    metadata = read_header(golden_gguf).metadata
    expected = {
        "general.architecture": "spikingbrain",
        "general.type": "model",
        "general.file_type": 0,
        "spikingbrain.context_length": 2048,
        "spikingbrain.embedding_length": 128,
        "spikingbrain.block_count": 4,
        "spikingbrain.feed_forward_length": 256,
        "spikingbrain.vocab_size": 256,
        "spikingbrain.attention.head_count": 4,
        "spikingbrain.attention.head_count_kv": 2,
        "spikingbrain.attention.key_length": 32,
        "spikingbrain.attention.value_length": 32,
        "spikingbrain.attention.sliding_window": 16,
        "spikingbrain.attention.decay_lora_rank": 16,
        "spikingbrain.rope.dimension_count": 32,
        "spikingbrain.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "no_vocab",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["spikingbrain.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert metadata["spikingbrain.attention.recurrent_layers"].tolist() == [True, False, True, False]


def test_sharded_checkpoint_gives_the_same_file(data, tmp_path, sharded_copy):
    convert_checkpoint(data / "gla_swa", tmp_path / "a.gguf", outtype="f32")
    sharded_copy.folder.rename(tmp_path / "gla_swa")  # the name is in the metadata
    convert_checkpoint(tmp_path / "gla_swa", tmp_path / "b.gguf", outtype="f32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", "bf16"), ("f16", "f16"), ("f32", "f16")])
def test_auto_keeps_sixteen_bits(tmp_path, dtype, expected):
    init_checkpoint("tiny", tmp_path / "tiny", dtype=dtype)
    report = convert_checkpoint(tmp_path / "tiny", None)
    assert report.outtype == expected
    assert report.files == (tmp_path / "tiny" / f"Tiny-664K-{expected.upper()}.gguf",)
    file_type = read_header(report.files[0]).metadata["general.file_type"]
    assert file_type == {"bf16": 32, "f16": 1}[expected]


def test_rows_that_do_not_fit_q8_0_become_f16(tmp_path):
    config = PRESETS["tiny"].model_copy(update={"hidden_size": 48, "intermediate_size": 64})
    write_random_checkpoint(config, tmp_path / "odd", attention_bias=True)
    convert_checkpoint(tmp_path / "odd", tmp_path / "odd.gguf", outtype="q8_0")
    types = {tensor.name: tensor.type for tensor in read_header(tmp_path / "odd.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == "F16" and types["blk.0.ffn_down.weight"] == "Q8_0"


def test_outfile_as_folder_and_as_template(data, tmp_path):
    (into_folder,) = convert_checkpoint(data / "gla_swa", tmp_path, outtype="f16").files
    assert into_folder == tmp_path / "Gla_Swa-664K-F16.gguf"
    templated = tmp_path / "model.{ftype}.{FTYPE}.{0}.gguf"
    (file,) = convert_checkpoint(data / "gla_swa", templated, outtype="q8_0").files
    assert file.name == "model.q8_0.Q8_0.{0}.gguf"


def test_dry_run_writes_nothing(data, tmp_path):
    report = convert_checkpoint(
        data / "gla_swa", tmp_path / "x.gguf", outtype="f16", dry_run=True, split_max_size=300_000
    )
    assert folder_listing(tmp_path) == []
    written = convert_checkpoint(data / "gla_swa", tmp_path / "x.gguf", outtype="f16", split_max_size=300_000)
    assert report.files == written.files and report.tensors == written.tensors


def test_split(data, tmp_path):
    convert_checkpoint(data / "gla_swa", tmp_path / "whole.gguf", outtype="f16")
    report = convert_checkpoint(
        data / "gla_swa", tmp_path / "part.gguf", outtype="f16", split_max_size=300_000
    )
    count = len(report.files)
    assert count > 2
    assert folder_listing(tmp_path) == [f"part-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)] + [
        "whole.gguf"
    ]
    whole, parts = read_header(tmp_path / "whole.gguf"), read_header(report.files[0])
    assert parts.files == list(report.files)
    assert parts.metadata["split.count"] == count and parts.metadata["split.tensors.count"] == 59
    for tensor in whole.tensors:
        np.testing.assert_array_equal(read_values(parts, tensor.name), read_values(whole, tensor.name))
    sizes = [sum(tensor.nbytes for tensor in parts.tensors if tensor.file == file) for file in parts.files]
    assert max(sizes) <= 300_000


def test_split_size_larger_than_the_model(data, tmp_path, caplog):
    report = convert_checkpoint(data / "gla_swa", tmp_path / "x.gguf", split_max_size=10**9)
    assert report.files == (tmp_path / "x.gguf",)
    assert "split.count" not in read_header(tmp_path / "x.gguf").metadata
    assert not caplog.records


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight", "model.layers.0.attn.gk_proj.1.bias"]
)
def test_bad_values_are_named_and_nothing_is_written(golden_copy, tmp_path, name, bad):
    target = tmp_path / "out.gguf"
    target.write_bytes(b"earlier")

    def spoil(values):
        values[37] = bad

    golden_copy.edit_values(name, spoil)
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(golden_copy.folder, target)
    place = "[0, 37]" if "down_proj" in name else "[37]"
    assert f"{name}: holds NaN or infinity (found {bad} at {place})" in str(caught.value)
    assert target.read_bytes() == b"earlier" and folder_listing(tmp_path) == ["checkpoint", "out.gguf"]


def test_values_beyond_f16_are_named(golden_copy, tmp_path):
    def enlarge(values):
        values[130] = 1e5

    golden_copy.edit_values("lm_head.weight", enlarge)
    with pytest.raises(
        CheckpointError,
        match=r"lm_head\.weight: exceeds the range of F16 \(found 100000\.0 at \[1, 2\]\); use --outtype b",
    ):
        convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf", outtype="f16")
    convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf", outtype="bf16")


def test_output_problems(data, tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist"):
        convert_checkpoint(data / "gla_swa", tmp_path / "no" / "out.gguf")
    with pytest.raises(CheckpointError, match="not found"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "out.gguf")


def test_a_file_of_the_checkpoint_is_not_replaced(golden_copy):
    weights = golden_copy.folder / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(OutputError, match="is the input"):
        convert_checkpoint(golden_copy.folder, weights)
    assert weights.read_bytes() == before
    for _ in range(2):  # an earlier output in the same folder is replaced
        convert_checkpoint(golden_copy.folder, None)


def test_no_space_is_found_out_before_starting(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sb_edge.util.files.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="not enough space for the GGUF"):
        convert_checkpoint(data / "gla_swa", tmp_path / "out.gguf")


def test_full_disk_keeps_the_earlier_file(data, tmp_path):
    """A limit on file size stands in for a full disk: the write fails in the middle."""
    target = tmp_path / "out.gguf"
    target.write_bytes(b"earlier")
    command = [
        sys.executable,
        "-m",
        "sb_edge",
        "convert",
        str(data / "gla_swa"),
        "--outtype",
        "f32",
        "--outfile",
        str(target),
    ]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert result.returncode == 1
    assert result.stderr.strip() == f"error: {target}: cannot be written: File too large"
    assert target.read_bytes() == b"earlier" and folder_listing(tmp_path) == ["out.gguf"]


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Peak RSS of converting 20 times the weights is the same within a few MiB."""
    peaks = []
    for layers in (1, 20):
        config = PRESETS["tiny"].model_copy(
            update={
                "num_hidden_layers": layers,
                "hidden_size": 512,
                "intermediate_size": 8192,
                "attn_layers": None,
            }
        )
        folder = tmp_path / f"m{layers}"
        write_random_checkpoint(config, folder, attention_bias=False, dtype="f32")
        script = (
            "import sys; from pathlib import Path; from sb_edge.convert.convert import convert_checkpoint;"
            "convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[1] + '.gguf'), outtype='f32');"
            "print([line for line in open('/proc/self/status') if 'VmHWM' in line][0].split()[1])"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
        )
        peaks.append(int(run.stdout) / 1024)
    assert peaks[1] - peaks[0] < 16, peaks
    assert (tmp_path / "m20.gguf").stat().st_size > 900e6
