from __future__ import annotations

import numpy as np
import pytest
from shapes import LFM2_1_2B, LLAMA_1B, RWKV7_1_5B, SB_1B, SHAPES, header

from sb_edge.gguf.reader import read_header
from sb_edge.memory.flash_attention import uses_flash_attention
from sb_edge.memory.forecast import (
    DEFAULT_UBATCH,
    EngineSettings,
    compute_buffer,
    forecast,
    recurrent_layers,
    vocabulary_size,
)
from sb_edge.util.errors import GgufError, InferenceError


def test_llama_cache_grows_with_the_context():
    need = forecast(header("llama", LLAMA_1B), 262144)
    assert need.kv == 262144 * 16 * 2 * 512 * 2 == 8589934592  # 8.59 GB
    assert need.state == 0
    quantized = forecast(header("llama", LLAMA_1B), 262144, EngineSettings("q8_0", "q8_0"))
    assert quantized.kv == need.kv * 34 // 64


def test_spikingbrain_does_not():
    small, large = (forecast(header("spikingbrain", SB_1B), n_ctx) for n_ctx in (8192, 1 << 20))
    assert small.kv == large.kv == (4096 + DEFAULT_UBATCH) * 8 * 2 * 512 * 2
    assert small.state == large.state == 8 * 8 * 64 * 64 * 4 == 1 << 20
    assert large.total - small.total < 64 * 2**20  # the engine's books on a million positions
    assert forecast(header("spikingbrain", SB_1B), 1000).kv == 1024 * 8 * 2 * 512 * 2
    whole = forecast(header("spikingbrain", SB_1B), 8192, EngineSettings(swa_full=True))
    assert whole.kv == 8192 * 8 * 2 * 512 * 2


def test_other_recurrent_architectures():
    """Figures that the engine reports for lfm2-1.2b and rwkv7-1.5b."""
    lfm2 = header("lfm2", LFM2_1_2B)
    assert recurrent_layers(lfm2) == [layer not in (2, 5, 8, 10, 12, 14) for layer in range(16)]
    assert forecast(lfm2, 4096).kv == 48 * 2**20
    assert forecast(lfm2, 4096).state == 10 * 2 * 2048 * 4
    rwkv7 = header("rwkv7", RWKV7_1_5B)
    assert recurrent_layers(rwkv7) == [True] * 24
    assert forecast(rwkv7, 1 << 20) == forecast(rwkv7, 4096)
    assert forecast(rwkv7, 4096).kv == 0
    assert forecast(rwkv7, 4096).state == 24 * (2 + 64) * 2048 * 4


def test_sequences_have_their_own_share():
    model = header("spikingbrain", SB_1B)
    one, four = (forecast(model, 65536, EngineSettings(n_seq_max=count)) for count in (1, 4))
    assert four.state == 4 * one.state and four.kv == 4 * one.kv
    llama = header("llama", LLAMA_1B)
    assert forecast(llama, 8192, EngineSettings(n_seq_max=4)).kv == forecast(llama, 8192).kv


def test_window_cells_depend_on_the_ubatch():
    model = header("spikingbrain", SB_1B)
    kv = {n: forecast(model, 65536, EngineSettings(n_ubatch=n)).kv for n in (1, 128, 512, 1000)}
    assert {n: size // (8 * 2 * 512 * 2) for n, size in kv.items()} == {
        1: 4352,
        128: 4352,
        512: 4608,
        1000: 5120,
    }


@pytest.mark.parametrize(
    ("arch", "n_ctx", "n_ubatch", "n_outputs", "flash", "measured_mib"),
    [
        ("llama", 512, 512, 512, "on", 258.50),
        ("llama", 65536, 512, 512, "on", 258.50),
        ("llama", 8192, 128, 128, "on", 64.63),
        ("llama", 8192, 512, 512, "off", 550.01),
        ("llama", 4096, 512, 1, "on", 68.01),
        ("llama", 65536, 512, 1, "on", 128.01),
        ("llama", 4096, 64, 1, "on", 8.50),
        ("llama", 4096, 1024, 64, "on", 136.02),
        ("llama", 16384, 512, 1, "off", 1078.01),
        ("spikingbrain", 65536, 512, 512, "on", 258.50),
        ("spikingbrain", 65536, 128, 128, "on", 64.63),
        ("spikingbrain", 65536, 512, 1, "off", 319.01),
        ("spikingbrain", 65536, 512, 1, "on", 68.64),
        ("lfm2", 4096, 512, 1, "on", 64.03),
        ("lfm2", 65536, 512, 1, "on", 124.03),
        ("lfm2", 4096, 512, 512, "on", 144.01),
        ("lfm2", 16384, 128, 1, "off", 269.50),
        ("rwkv7", 4096, 512, 1, "on", 77.21),
        ("rwkv7", 4096, 64, 1, "on", 10.54),
        ("rwkv7", 4096, 512, 512, "on", 136.00),
    ],
)
def test_buffers_match_what_the_engine_allocates(arch, n_ctx, n_ubatch, n_outputs, flash, measured_mib):
    """Compute buffers that the engine reported on a CPU for these shapes."""
    settings = EngineSettings(n_ubatch=n_ubatch, n_outputs=n_outputs, flash_attn=flash)
    need = compute_buffer(header(arch, SHAPES[arch]), n_ctx, settings)
    assert need / 2**20 == pytest.approx(measured_mib, rel=0.08)


def test_logits_of_a_whole_batch_are_kept_twice():
    """In the compute buffer and in the output that is read from."""
    model = header("llama", LLAMA_1B)
    one, all_of_them = (forecast(model, 512, EngineSettings(n_ubatch=512, n_outputs=n)) for n in (1, 512))
    assert all_of_them.buffers - one.buffers == pytest.approx(2 * 4 * 512 * 128256, rel=0.15)


def test_total(golden_gguf):
    need = forecast(read_header(golden_gguf), 2048)
    assert need.total == need.weights + need.kv + need.state + need.buffers + need.engine
    assert need.repacked == need.originals == 0  # float32 is used in place
    assert need.beyond_weights().total == need.kv + need.state + need.buffers
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
    with pytest.raises(GgufError, match=r"llama\.block_count: key not found"):
        forecast(header("llama", {}), 1024)


@pytest.mark.parametrize(
    "settings", [{"n_seq_max": 0}, {"n_ubatch": -1}, {"n_outputs": 0}, {"type_k": "f17"}, {"type_v": "f17"}]
)
def test_impossible_settings(settings):
    with pytest.raises(InferenceError):
        EngineSettings(**settings)


def test_impossible_context():
    with pytest.raises(InferenceError, match="n_ctx: must be positive"):
        forecast(header("llama", LLAMA_1B), 0)


@pytest.mark.parametrize(
    ("arch", "choice", "types", "expected"),
    [
        ("llama", "auto", ("f16", "f16"), True),
        ("llama", "auto", ("f32", "f32"), False),
        ("llama", "auto", ("f16", "f32"), False),
        ("llama", "on", ("f32", "f32"), True),
        ("llama", "off", ("f16", "f16"), False),
        ("spikingbrain", "auto", ("f32", "f32"), True),
        ("spikingbrain", "off", ("f32", "f32"), False),
    ],
)
def test_flash_attention_is_off_where_it_would_round(arch, choice, types, expected):
    assert uses_flash_attention(arch, choice, *types) is expected


@pytest.mark.parametrize(("arch", "as_if"), [("llama", "off"), ("spikingbrain", "on")])
def test_a_float32_cache_is_forecast_as_it_is_computed(arch, as_if):
    automatic, explicit = (
        compute_buffer(header(arch, SHAPES[arch]), 8192, EngineSettings("f32", "f32", flash_attn=choice))
        for choice in ("auto", as_if)
    )
    assert automatic == explicit
