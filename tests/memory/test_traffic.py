from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sb_edge.gguf.reader import GgufHeader, TensorEntry, read_header
from sb_edge.memory.traffic import token_traffic, weight_bytes
from sb_edge.util.errors import InferenceError


def header_of(tensors: dict[str, tuple[tuple[int, ...], int]], **keys: Any) -> GgufHeader:
    entries = [
        TensorEntry(name, shape, "F16", nbytes, 0, Path("m")) for name, (shape, nbytes) in tensors.items()
    ]
    return GgufHeader("llama", {f"llama.{key}": value for key, value in keys.items()}, entries, [Path("m")])


def test_tied_embeddings_are_read_whole() -> None:
    assert (
        weight_bytes(header_of({"token_embd.weight": ((100, 8), 1600), "output_norm.weight": ((8,), 32)}))
        == 1632
    )


def test_of_untied_embeddings_one_row_is_read() -> None:
    tensors = {"token_embd.weight": ((100, 8), 1600), "output.weight": ((100, 8), 1600)}
    assert weight_bytes(header_of(tensors)) == 1600 + 16


def test_of_the_experts_those_in_use_are_read() -> None:
    tensors = {"blk.0.ffn_up_exps.weight": ((16, 8, 8), 2048), "blk.0.ffn_up_shexp.weight": ((8, 8), 128)}
    assert weight_bytes(header_of(tensors, expert_count=16, expert_used_count=2)) == 256 + 128


def test_the_tiny_preset_by_hand(tiny_gguf: Path) -> None:
    """Vocabulary 256, hidden 128, layers GLA, SWA, GLA, SWA, Hkv 2, d 32, FFN 256, window 16, untied."""
    attention = 2 * (128 * 128) + 2 * (64 * 128) + 128 + 2 * 64  # q and o, k and v, biases
    gla = (16 * 128) + (64 * 16) + 64 + 32  # gate: two matrices and a bias; the norm of one head
    ffn_and_norms = 3 * 256 * 128 + 2 * 128
    values = 4 * (attention + ffn_and_norms) + 2 * gla + 128 + 256 * 128  # final norm, output
    embedding_row = 128
    touched = token_traffic(read_header(tiny_gguf), 100)
    assert touched.weights == 4 * (values + embedding_row)
    assert touched.kv == 2 * 16 * (64 + 64) * 2  # two SWA layers, the window, keys and values, float16
    assert touched.state == 2 * 2 * 2 * 32 * 32 * 4  # read and written, two GLA layers, Hkv, d, d, float32
    assert touched.total == touched.weights + touched.kv + touched.state


def test_before_the_window_is_full_only_what_is_there_is_read(tiny_gguf: Path) -> None:
    assert token_traffic(read_header(tiny_gguf), 4.5).kv == 2 * 4.5 * (64 + 64) * 2


def test_a_transformers_cache_grows_with_the_context(tiny_llama: Path) -> None:
    header = read_header(tiny_llama)
    assert token_traffic(header, 1000).kv == 2 * 1000 * (64 + 64) * 2
    assert token_traffic(header, 1000, type_k="q8_0", type_v="q8_0").kv == 2 * 1000 * 2 * (64 // 32 * 34)
    assert token_traffic(header, 1000).state == 0


def test_an_unknown_cache_type_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(InferenceError, match="q9_9"):
        token_traffic(read_header(tiny_llama), 1, type_k="q9_9")
