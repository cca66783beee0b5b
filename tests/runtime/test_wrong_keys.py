"""A wrong key of a GGUF ends in a line that names it, in `inspect` and before the engine sees the file."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_edit import rewrite
from support import refusal, sb_edge

from sb_edge.arch.model_check import read_model
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.values import tensor_bytes

pytestmark = pytest.mark.engine

NAN, INF = float("nan"), float("inf")
ARCH = "spikingbrain"
WRONG = {
    "experts": {f"{ARCH}.expert_count": 8},
    "too many experts": {f"{ARCH}.expert_count": 2**31 - 1},
    "active experts": {f"{ARCH}.expert_used_count": 512},
    "predicted layers": {f"{ARCH}.nextn_predict_layers": 100},
    "epsilon -inf": {f"{ARCH}.attention.layer_norm_rms_epsilon": -INF},
    "epsilon nan": {f"{ARCH}.attention.layer_norm_rms_epsilon": NAN},
    "epsilon 0": {f"{ARCH}.attention.layer_norm_rms_epsilon": 0.0},
    "rope nan": {f"{ARCH}.rope.freq_base": NAN},
    "rope scale nan": {f"{ARCH}.rope.scaling.factor": NAN},
    "rope scaling": {f"{ARCH}.rope.scaling.type": "spiral"},
    "vocabulary kind": {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": None},
    "layers": {f"{ARCH}.block_count": 0},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_a_wrong_key_is_named(
    changes: dict[str, object], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.gguf"
    rewrite(tiny, path, changes)
    named = "tokenizer.ggml.scores" if "tokenizer.ggml.model" in changes else next(iter(changes))
    for command in (("inspect", path), ("generate", path, "-p", "x", "-n", "1")):
        assert f"{path}: {named}: " in refusal(capsys, *command)


def test_a_token_that_is_there_twice_is_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = list(read_header(tiny).metadata["tokenizer.ggml.tokens"])
    path = tmp_path / "twice.gguf"
    for number, text in ((7, tokens[8]), (9, tokens[8] + "\0x")):
        rewrite(tiny, path, {"tokenizer.ggml.tokens": [*tokens[:number], text, *tokens[number + 1 :]]})
        for command in (("inspect", path), ("generate", path, "-p", "x", "-n", "1")):
            assert "tokenizer.ggml.tokens: a token is listed twice" in refusal(capsys, *command)


def test_a_vocabulary_that_does_not_fit_its_embeddings_takes_no_memory(
    golden_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "large.gguf"
    rewrite(golden_gguf, path, {f"{ARCH}.vocab_size": 2**28})
    for command in (("inspect", path), ("parity", path, "--golden", golden_gguf)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        done = sb_edge(*command)
        assert f"{ARCH}.vocab_size: does not fit token_embd.weight" in done.stderr
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before, 0) < 1 << 20


def test_a_bias_of_integers_is_named(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "integers.gguf"
    shutil.copy(tiny, path)
    data = path.read_bytes()
    name = b"blk.0.attn_q.bias"
    place = data.index(name) + len(name) + 4 + 8  # after the number of dimensions and one dimension
    assert data[place : place + 4] == bytes(4)  # F32
    path.write_bytes(data[:place] + (26).to_bytes(4, "little") + data[place + 4 :])
    for command in (("inspect", path), ("generate", path, "-p", "x", "-n", "1")):
        assert "blk.0.attn_q.bias: has the wrong type (found I32, expected F32)" in refusal(capsys, *command)


def test_a_small_alignment_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "alignment.gguf"
    writer = gguf.GGUFWriter(path, ARCH)
    writer.add_uint32("general.alignment", 2)
    writer.data_alignment = 2
    writer.add_tensor("token_embd.weight", np.zeros((3, 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "general.alignment: is too small" in refusal(capsys, "inspect", path)


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight", "blk.1.ffn_down.weight"])
def test_noise_is_an_error(name: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    shutil.copy(tiny, path)
    tensor = next(each for each in read_header(path).tensors if each.name == name)
    values = tensor_bytes(tensor, writable=True)
    values.view(np.float32)[:] = NAN
    values.flush()  # type: ignore[attr-defined]
    done = sb_edge("generate", path, "-p", "x", "-n", "3")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "computes logits that are not finite" in done.stderr


def test_sound_files_pass(tiny: Path, tiny_llama: Path, tiny_lfm2: Path, tiny_rwkv7: Path) -> None:
    for path in (tiny, tiny_llama, tiny_lfm2, tiny_rwkv7):
        assert read_model(path).tensors
