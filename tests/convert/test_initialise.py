from __future__ import annotations

import numpy as np
import pytest

from sb_edge.arch.config import PRESETS
from sb_edge.bench.baselines.llama import LlamaShape, write_llama_gguf
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.random_weights import normal
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.convert.initialise import GATE_BIAS, INITIALIZER_RANGE, init_checkpoint
from sb_edge.gguf.reader import read_header
from sb_edge.memory.forecast import forecast
from sb_edge.util.errors import OutputError


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_tiny_is_a_complete_checkpoint(tmp_path, dtype):
    nbytes = init_checkpoint("tiny", tmp_path / "tiny", dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path / "tiny")
    layout, table = account_for_tensors(checkpoint)
    assert layout.attention_bias and layout.gate_rank == 16
    assert nbytes == sum(checkpoint.info(name).nbytes for name in table)
    values = checkpoint.read("model.layers.0.mlp.up_proj.weight").astype(np.float32)
    assert values.std() == pytest.approx(INITIALIZER_RANGE, rel=0.02) and abs(values.mean()) < 1e-3
    assert (checkpoint.read("model.norm.weight") == 1).all()
    gate = checkpoint.read("model.layers.0.attn.gk_proj.1.bias").astype(np.float32)
    assert gate.mean() == pytest.approx(GATE_BIAS, abs=0.05)


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        init_checkpoint("tiny", tmp_path / name, seed=seed)
    first, second, third = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second != third


def test_shards_hold_the_same_values(tmp_path):
    init_checkpoint("tiny", tmp_path / "one")
    init_checkpoint("tiny", tmp_path / "many", max_shard_bytes=200_000)
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for name in one.names:
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_an_earlier_folder_is_kept(tmp_path):
    init_checkpoint("tiny", tmp_path / "tiny")
    before = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        init_checkpoint("tiny", tmp_path / "tiny", seed=1)
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == before


def test_names_draw_different_values():
    first, second = (np.concatenate(list(normal(0, name, 1000, 1.0))) for name in ("a", "b"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_llama_shape(tmp_path):
    shape = LlamaShape(n_layer=2, hidden=64, n_head=4, n_head_kv=2, ffn=96, vocab=128)
    write_llama_gguf(tmp_path / "llama.gguf", "f16", shape=shape)
    header = read_header(tmp_path / "llama.gguf")
    assert header.arch == "llama" and header.integer("vocab_size") == 128
    assert {tensor.type for tensor in header.tensors} == {"F16", "F32"}
    assert header.n_params == 128 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    assert forecast(header, 1024).kv == 2 * 1024 * 2 * 32 * 2


def test_presets_have_the_sizes_of_their_models():
    from math import prod

    from sb_edge.arch.tensors import expected_tensors

    params = sum(prod(spec.shape) for spec in expected_tensors(PRESETS["1b"], attention_bias=False).values())
    assert params == pytest.approx(1.24e9, rel=0.01)
