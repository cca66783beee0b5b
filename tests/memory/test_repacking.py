from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sb_edge.gguf.reader import GgufHeader, TensorEntry
from sb_edge.memory.repacking import WeightBytes, cpu_features, weight_bytes

AVX2 = frozenset({"avx2"})


def model(*tensors: tuple[str, tuple[int, ...], str], spike: dict | None = None) -> GgufHeader:
    file = Path("m.gguf")
    entries = [TensorEntry(name, shape, kind, 1000, 0, file) for name, shape, kind in tensors]
    metadata = {f"spikingbrain.spike.{name}": value for name, value in (spike or {}).items()}
    return GgufHeader("spikingbrain" if spike else "llama", metadata, entries, [file])


@pytest.mark.parametrize(
    ("kind", "rows", "features", "copies"),
    [
        ("Q4_0", 64, AVX2, 1),
        ("Q4_0", 60, AVX2, 0),
        ("Q4_0", 60, {"asimddp"}, 1),
        ("Q8_0", 64, AVX2, 0),
        ("Q8_0", 64, {"asimddp"}, 1),
        ("Q2_K", 64, AVX2, 0),
        ("Q2_K", 64, AVX2 | {"avx512f"}, 1),
        ("Q4_0", 64, {"sse3"}, 0),
        ("F16", 64, AVX2, 0),
    ],
)
def test_what_ggml_has_kernels_for(kind, rows, features, copies):
    header = model(("output.weight", (8, 8), "F32"), ("blk.0.ffn_up.weight", (rows, 32), kind))
    assert weight_bytes(header, features=frozenset(features)).repacked == copies * 1000


def test_a_table_is_repacked_only_where_it_is_the_output_too():
    table = ("token_embd.weight", (64, 32), "Q4_0")
    assert weight_bytes(model(table), features=AVX2).repacked == 1000
    assert weight_bytes(model(table, ("output.weight", (64, 32), "F16")), features=AVX2).repacked == 0


def test_weights_that_meet_spikes_are_not():
    tensors = [(f"blk.0.{name}.weight", (64, 32), "Q4_0") for name in ("attn_q", "attn_k", "ffn_up")]
    spike = {"projections": ["attn_q", "ffn_up"], "k": 3.0}
    assert weight_bytes(model(*tensors, spike=spike), features=AVX2).repacked == 1000
    assert weight_bytes(model(*tensors, spike=spike), spikes=0, features=AVX2).repacked == 3000
    own = model(*tensors, spike=spike | {"layer_k": np.array([3.0, 0.0], np.float32)})
    own.metadata["spikingbrain.block_count"] = 1
    assert weight_bytes(own, features=AVX2).repacked == 2000


def test_features_of_both_kinds_of_processor(tmp_path):
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\n")
    (tmp_path / "arm").write_text("Features\t: fp asimd asimddp i8mm\n")
    assert cpu_features(tmp_path / "x86") == {"fpu", "avx2", "fma"}
    assert cpu_features(tmp_path / "arm") == {"fp", "asimd", "asimddp", "i8mm"}
    assert cpu_features(tmp_path / "none")


def test_originals_are_unmapped_wherever_they_lie():
    names = ("blk.0.attn_q", "blk.0.attn_norm", "blk.0.attn_k", "output", "blk.0.ffn_up")
    kinds = ("Q4_0", "F32", "Q4_0", "F16", "Q4_0")
    file = Path("m.gguf")
    entries = [
        TensorEntry(f"{name}.weight", (64,) if kind == "F32" else (64, 32), kind, 1000, 1000 * place, file)
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    header = GgufHeader("llama", {}, entries, [file])
    assert weight_bytes(header, features=AVX2) == WeightBytes(2000, 3000, 3000)
    assert weight_bytes(header, features=frozenset()) == WeightBytes(5000, 0, 0)
