from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sb_edge.errors import GgufError, InferenceError, OutOfMemoryForecast
from sb_edge.gguf_reader import GgufHeader, read_header
from sb_edge.memory import forecast, recurrent_layers, require_memory, vocabulary_size

LLAMA_1B = {
    "block_count": 16,
    "embedding_length": 2048,
    "feed_forward_length": 8192,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
    "vocab_size": 128256,
}
SB_1B = LLAMA_1B | {
    "attention.sliding_window": 4096,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.recurrent_layers": np.arange(16) % 2 == 0,
}


def header(arch: str, keys: dict) -> GgufHeader:
    return GgufHeader(arch, {f"{arch}.{name}": value for name, value in keys.items()}, [], [Path("m.gguf")])


def test_llama_cache_grows_with_the_context():
    need = forecast(header("llama", LLAMA_1B), 262144)
    assert need.kv == 262144 * 16 * 2 * 512 * 2 == 8589934592  # 8.59 GB
    assert need.state == 0
    assert forecast(header("llama", LLAMA_1B), 262144, type_k="q8_0", type_v="q8_0").kv == need.kv * 34 // 64


def test_spikingbrain_does_not():
    small, large = (forecast(header("spikingbrain", SB_1B), n_ctx) for n_ctx in (8192, 1 << 20))
    assert small == large
    assert small.kv == (4096 + 512) * 8 * 2 * 512 * 2
    assert small.state == 8 * 8 * 64 * 64 * 4 == 1 << 20
    assert forecast(header("spikingbrain", SB_1B), 1000).kv == 1024 * 8 * 2 * 512 * 2


def test_sequences_have_their_own_share():
    model = header("spikingbrain", SB_1B)
    one, four = (forecast(model, 65536, n_seq_max=count) for count in (1, 4))
    assert four.state == 4 * one.state and four.kv == 4 * one.kv
    llama = header("llama", LLAMA_1B)
    assert forecast(llama, 8192, n_seq_max=4).kv == forecast(llama, 8192).kv


def test_window_cells_depend_on_the_ubatch():
    model = header("spikingbrain", SB_1B)
    cells = {n: forecast(model, 65536, n_ubatch=n).kv // (8 * 2 * 512 * 2) for n in (1, 128, 512, 1000)}
    assert cells == {1: 4352, 128: 4352, 512: 4608, 1000: 5120}


@pytest.mark.parametrize(
    ("arch", "n_ctx", "n_ubatch", "flash", "measured_mib"),
    [
        ("llama", 512, 512, True, 258.50),
        ("llama", 65536, 512, True, 258.50),
        ("llama", 8192, 128, True, 64.63),
        ("llama", 8192, 512, False, 550.01),
        ("spikingbrain", 65536, 512, True, 258.50),
        ("spikingbrain", 65536, 128, True, 64.63),
        ("spikingbrain", 65536, 512, False, 319.01),
    ],
)
def test_buffers_match_what_the_engine_allocates(arch, n_ctx, n_ubatch, flash, measured_mib):
    """Compute buffers that the engine reported on a CPU for these shapes, plus 0.49 MiB of output."""
    model = header(arch, SB_1B if arch == "spikingbrain" else LLAMA_1B)
    need = forecast(model, n_ctx, n_ubatch=n_ubatch, flash_attn=flash)
    assert need.buffers / 2**20 == pytest.approx(measured_mib + 0.49, rel=0.001)


def test_total(golden_gguf):
    need = forecast(read_header(golden_gguf), 2048)
    assert need.total == need.weights + need.kv + need.state + need.buffers
    assert need.weights == sum(tensor.nbytes for tensor in read_header(golden_gguf).tensors)
    assert need.state == 2 * 2 * 32 * 32 * 4


def test_layer_maps():
    assert recurrent_layers(header("spikingbrain", SB_1B)) == [True, False] * 8
    without = {name: value for name, value in SB_1B.items() if "recurrent" not in name}
    assert recurrent_layers(header("spikingbrain", without)) == [True, False] * 8
    assert (
        recurrent_layers(header("spikingbrain", SB_1B | {"attention.recurrent_layers": True})) == [True] * 16
    )
    assert recurrent_layers(header("llama", LLAMA_1B)) == [False] * 16
    assert vocabulary_size(header("llama", LLAMA_1B)) == 128256


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_count": 0}, "block_count: is impossible"),
        ({"block_count": 2**32 - 1}, "block_count: is impossible"),
        ({"embedding_length": -4}, "embedding_length: is impossible"),
        ({"attention.sliding_window": 2**63}, "sliding_window: is impossible"),
        (
            {"attention.recurrent_layers": np.array([True])},
            "is not one value a layer (found 1 values, expected 16)",
        ),
        ({"attention.recurrent_layers": "x"}, "is not one value a layer"),
        ({"attention.head_count": "x"}, "head_count: is not an integer"),
        ({"attention.head_count_kv": np.full(16, -1)}, "head_count_kv: is impossible"),
    ],
)
def test_impossible_headers(changes, problem):
    with pytest.raises(GgufError) as caught:
        forecast(header("spikingbrain", SB_1B | changes), 1024)
    assert problem in str(caught.value)


def test_missing_key():
    with pytest.raises(GgufError, match=r"llama\.block_count: has no such key"):
        forecast(header("llama", {}), 1024)


@pytest.mark.parametrize(
    "settings",
    [{"n_ctx": 0}, {"n_ctx": 8, "n_seq_max": 0}, {"n_ctx": 8, "n_ubatch": -1}, {"n_ctx": 8, "type_k": "f17"}],
)
def test_impossible_settings(settings):
    with pytest.raises(InferenceError):
        forecast(header("llama", LLAMA_1B), **settings)


def test_require_memory():
    require_memory(header("spikingbrain", SB_1B), 4096)
    with pytest.raises(
        OutOfMemoryForecast, match=r"1000000000 tokens will not fit in memory \(found .* GiB available"
    ):
        require_memory(header("llama", LLAMA_1B), 10**9)
