from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from sb_edge.bench.baselines.llama import LlamaShape, write_llama_gguf
from sb_edge.cli.inspect import MEMORY_PARTS, command, file_type_name
from sb_edge.util.errors import GgufError


def run(*args: object) -> str:
    result = CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_shows_the_layer_map_and_the_memory(golden_gguf):
    text = run(golden_gguf, "--ctx-size", 100)
    for expected in ("spikingbrain", "GSGS", "G = gated linear attention (2)", "memory at 100 tokens", "F32"):
        assert expected in text
    assert "blk.0" not in text
    assert "blk.0.ssm_f_a.weight" in run(golden_gguf, "--tensors")


def test_json(golden_gguf):
    document = json.loads(run(golden_gguf, "--ctx-size", 100, "--tensors", "--json", "-"))
    assert document["architecture"] == "spikingbrain" and document["layers"] == "GSGS"
    assert document["n_params"] == 663872 and document["file_type"] == "F32"
    assert document["vocabulary"] == {"model": "no_vocab", "pre": None, "size": 256}
    memory = document["memory"]
    assert memory["context"] == 100
    assert memory["total"] == sum(memory[part] for part in MEMORY_PARTS)
    assert memory["type_k"] == memory["type_v"] == "f16"
    assert document["tensor_types"] == [{"type": "F32", "tensors": 59, "nbytes": 663872 * 4}]
    assert len(document["tensors"]) == 59
    assert document["tensors"][0] == {
        "name": "token_embd.weight",
        "type": "F32",
        "shape": [256, 128],
        "nbytes": 131072,
    }
    assert document["hyperparameters"]["attention.sliding_window"] == 16


def test_json_to_a_file_beside_the_text(golden_gguf, tmp_path):
    assert "GSGS" in run(golden_gguf, "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["memory"] is None
    run(golden_gguf, "-c", "2k", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["memory"]["context"] == 2048


def test_file_types_are_those_of_the_engine():
    for kind in gguf.LlamaFileType:
        if kind is not gguf.LlamaFileType.GUESSED:
            assert file_type_name(kind.value) == kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    for number in (-1, 4, 33, 5000):
        assert file_type_name(number) == f"unknown ({number})"


def test_without_an_engine_there_is_no_forecast(golden_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("SB_EDGE_ENGINE", str(tmp_path))
    assert "no forecast: " in " ".join(run(golden_gguf, "-c", "2k").split())


def test_other_architectures(tmp_path):
    path = tmp_path / "llama.gguf"
    write_llama_gguf(path, shape=LlamaShape(n_layer=3, hidden=64, n_head=4, n_head_kv=2, ffn=96, vocab=128))
    document = json.loads(run(path, "--json", "-"))
    assert document["architecture"] == "llama" and document["layers"] == "AAA"
    assert "A = attention (3)" in run(path)


def test_file_without_a_model(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "imatrix")
    writer.add_name("a\x1b[31m [bold]b")
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = run(tmp_path / "odd.gguf")
    assert "imatrix" in text and r"a\x1b[31m [bold]b" in text and "\x1b" not in text
    document = json.loads(run(tmp_path / "odd.gguf", "--json", "-"))
    assert document["layers"] is None and document["memory"] is None


def test_bad_files_are_named(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(10))
    for name in ("bad.gguf", "none.gguf"):
        with pytest.raises(GgufError, match=name):
            CliRunner().invoke(command, [str(tmp_path / name)], catch_exceptions=False)


def test_spiking(golden_gguf, tmp_path):
    from sb_edge.arch.spike_plan import SpikePlan
    from sb_edge.arch.spike_rewrite import with_spike_plan

    assert json.loads(run(golden_gguf, "--json", "-"))["spiking"] is None
    assert "none" in next(line for line in run(golden_gguf).splitlines() if line.startswith("spikes"))
    path = tmp_path / "s.gguf"
    with_spike_plan(golden_gguf, path, SpikePlan(("attn_q", "ffn_up"), 3, query_k=2, kv_rounding=True))
    text = run(path)
    for expected in ("k = 3", "attn_q ffn_up", "k = 2", "rounded to INT8"):
        assert expected in text
    document = json.loads(run(path, "--json", "-"))
    assert document["spiking"] == {
        "k": 3.0,
        "k_min": 3.0,
        "k_max": 3.0,
        "projections": ["attn_q", "ffn_up"],
        "layer_k": None,
        "query_k": 2.0,
        "kv_rounding": True,
    }
    assert not [key for key in document["hyperparameters"] if "spike" in key]


def test_spiking_with_a_k_for_each_projection(golden_gguf, tmp_path):
    from sb_edge.arch.spike_plan import SpikePlan
    from sb_edge.arch.spike_rewrite import with_spike_plan

    path = tmp_path / "s.gguf"
    with_spike_plan(golden_gguf, path, SpikePlan(("attn_q", "ffn_up"), 3, ((2.0, 0.0),) * 3 + ((4.5, 2.5),)))
    assert "k per projection, 2 to 4.5" in run(path)
    spiking = json.loads(run(path, "--json", "-"))["spiking"]
    assert spiking["layer_k"] == [[2.0, 0.0]] * 3 + [[4.5, 2.5]]
    assert (spiking["k_min"], spiking["k_max"]) == (2.0, 4.5)


def test_spikes_that_cannot_be_are_refused(golden_gguf, tmp_path):
    from sb_edge.gguf.rewrite import with_metadata

    keys = {"spikingbrain.spike.k": 0.0, "spikingbrain.spike.projections": ["attn_q"]}
    with_metadata(golden_gguf, tmp_path / "bad.gguf", values=keys)
    with pytest.raises(GgufError, match=r"bad\.gguf: .*must be a positive number"):
        CliRunner().invoke(command, [str(tmp_path / "bad.gguf")], catch_exceptions=False)


def test_a_smaller_cache_needs_less(golden_gguf):
    f16, q8_0 = (
        json.loads(run(golden_gguf, "--ctx-size", 2048, "-ctk", kind, "-ctv", kind, "--json", "-"))["memory"]
        for kind in ("f16", "q8_0")
    )
    assert q8_0["kv"] == f16["kv"] * 34 // 64


def test_layers_of_other_architectures(tmp_path):
    from sb_edge.bench.baselines.lfm2 import Lfm2Shape, write_lfm2_gguf

    shape = Lfm2Shape(n_layer=3, attention_layers=(1,), hidden=64, n_head=2, n_head_kv=1, ffn=96, vocab=64)
    write_lfm2_gguf(tmp_path / "lfm2.gguf", shape=shape)
    text = run(tmp_path / "lfm2.gguf")
    assert "CAC" in text and "short convolution (2)" in text
