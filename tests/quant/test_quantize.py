"""llama-quantize through `sb-edge quantize`: its output, and failures that leave nothing."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sb_edge.engine import activate, find_engine
from sb_edge.quant.quantize import quantization_types, quantize, tensor_types
from sb_edge.util.errors import GgufError, OutputError

pytestmark = pytest.mark.engine

WIDTH, HIDDEN, VOCABULARY = 256, 512, 320


def write_model(path: Path, *, layers: int = 1) -> Path:
    """A Llama-shaped GGUF in F32 with random weights and no vocabulary."""
    activate()
    from gguf import GGUFWriter

    random = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    shapes["output_norm"] = (WIDTH,)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}"] = (HIDDEN, WIDTH)
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, HIDDEN)
        shapes[f"blk.{layer}.attn_norm"] = shapes[f"blk.{layer}.ffn_norm"] = (WIDTH,)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "7model.gguf")


def tensor_kinds(path: Path) -> dict[str, str]:
    activate()
    from gguf import GGUFReader

    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def command(*arguments: str | Path, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "sb_edge", "quantize", *map(str, arguments)]
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        start_new_session=True,
    )


def test_the_types_are_those_of_the_tool() -> None:
    known = quantization_types()
    assert {"Q4_0", "Q4_K_M", "Q8_0", "IQ2_XXS", "MXFP4_MOE", "F16", "BF16", "COPY"} <= known.keys()
    listed = subprocess.run(
        [find_engine().tool("llama-quantize")], capture_output=True, text=True, check=False
    )
    assert len(known) == listed.stdout.count("  or  ") + 1
    assert "Q6_K" in tensor_types()


def test_weights_are_quantized_and_norms_are_not(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "q4.gguf"
    quantize(model, target, "q4_0", n_threads=1)
    kinds = tensor_kinds(target)
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["output.weight"] == "Q6_K"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert list(tmp_path.iterdir()) == [target]


def test_options_reach_the_tool(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    quantize(model, target, "Q8_0", leave_output_tensor=True, token_embedding_type="q5_0")
    kinds = tensor_kinds(target)
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("F32", "Q5_0")
    quantize(model, target, "Q4_K_M", pure=True)
    assert set(tensor_kinds(target).values()) == {"Q4_K", "F32"}
    quantize(model, target, "Q8_0", output_tensor_type="f16")
    assert tensor_kinds(target)["output.weight"] == "F16"


def test_a_relative_name_that_begins_with_a_digit_is_a_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    quantize(Path(model.name), Path("7b-q8.gguf"), "Q8_0")
    assert tensor_kinds(model.parent / "7b-q8.gguf")["output.weight"] == "Q8_0"


def test_the_command_line_writes_the_same_file(model: Path, tmp_path: Path) -> None:
    process = command(model, tmp_path / "a.gguf", "Q4_0", "--threads", "1")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.startswith(f"{tmp_path / 'a.gguf'}: ")
    quantize(model, tmp_path / "b.gguf", "Q4_0", n_threads=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("arguments", [["Q9_9"], ["2"], ["Q4_0", "--output-tensor-type", "Q9"]])
def test_an_unknown_type_is_bad_usage_and_lists_them(
    model: Path, tmp_path: Path, arguments: list[str]
) -> None:
    process = command(model, tmp_path / "out.gguf", *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Q4_0" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_input_is_refused(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    content = model.read_bytes()
    for size in (0, 3, 100, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:size])
        with pytest.raises(GgufError, match=str(damaged)):
            quantize(damaged, tmp_path / "out.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == [damaged]


def test_an_input_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    process = command(tmp_path / "absent.gguf", tmp_path / "out.gguf", "Q4_0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "absent.gguf" in errors


def test_a_type_that_needs_an_imatrix_says_so(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="--imatrix"):
        quantize(model, tmp_path / "out.gguf", "IQ1_S")
    assert list(tmp_path.iterdir()) == []


def test_an_imatrix_that_is_missing_or_damaged_is_refused(model: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "imatrix.gguf"
    with pytest.raises(GgufError, match=r"imatrix\.gguf: not found"):
        quantize(model, tmp_path / "out.gguf", "Q4_0", imatrix=imatrix)
    imatrix.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(GgufError, match="imatrix"):
        quantize(model, tmp_path / "out.gguf", "Q4_0", imatrix=imatrix)


def test_quantizing_twice_needs_permission(model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    quantize(model, once, "Q8_0")
    with pytest.raises(GgufError, match="--allow-requantize"):
        quantize(once, twice, "Q4_0")
    assert not twice.exists()
    quantize(once, twice, "Q4_0", allow_requantize=True)
    assert tensor_kinds(twice)["blk.0.ffn_up.weight"] == "Q4_0"


def test_the_input_is_not_replaced(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    for target in (model, link):
        with pytest.raises(OutputError, match="is the input"):
            quantize(model, target, "Q4_0")
    assert model.read_bytes() == before


def test_a_target_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"):
        quantize(model, tmp_path / "absent" / "out.gguf", "Q4_0")
    with pytest.raises(OutputError, match="is a folder"):
        quantize(model, tmp_path, "Q4_0")
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o555)
    if not os.access(read_only, os.W_OK):
        with pytest.raises(OutputError, match="Permission denied"):
            quantize(model, read_only / "out.gguf", "Q4_0")


def test_a_full_device_leaves_the_earlier_file(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"earlier")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = command(model, target, "Q8_0", limit=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith(f"error: {target}: could not be written")
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"earlier"


def test_an_interruption_stops_the_tool_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    source, target = write_model(tmp_path / "large.gguf", layers=40), tmp_path / "out.gguf"
    target.write_bytes(b"earlier")
    process = command(source, target, "Q2_K", "--threads", "1")
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in tmp_path.glob(".out.gguf.partial-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.gguf", "out.gguf"]
    assert target.read_bytes() == b"earlier"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
