"""The forecast, which is the engine's own simulated allocation, for files of real shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sb_edge.arch.layer_map import layer_count, recurrent_layers, vocabulary_size
from sb_edge.gguf.reader import GgufHeader, read_header
from sb_edge.gguf.rewrite import with_metadata
from sb_edge.memory.forecast import (
    DEFAULT_UBATCH,
    EngineSettings,
    forecast,
    forecast_weights,
    uses_flash_attention,
)
from sb_edge.runtime.binding import recent_log
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import GgufError, InferenceError

pytestmark = pytest.mark.engine

LAYERS = {
    "block_count": 16,
    "attention.head_count_kv": 8,
    "attention.recurrent_layers": np.arange(16) % 2 == 0,
}
LFM2 = {
    "block_count": 16,
    "attention.head_count_kv": np.array([8 * (layer in (2, 5, 8, 10, 12, 14)) for layer in range(16)]),
    "shortconv.l_cache": 3,
}


def header(arch: str, keys: dict) -> GgufHeader:
    return GgufHeader(arch, {f"{arch}.{name}": value for name, value in keys.items()}, [], [Path("m.gguf")])


def test_llama_cache_grows_with_the_context(hollow):
    need = forecast(hollow["llama"], 262144)
    assert need.kv == 262144 * 16 * 2 * 512 * 2 == 8589934592  # 8.59 GB
    assert need.state == 0
    quantized = forecast(hollow["llama"], 262144, EngineSettings("q8_0", "q8_0"))
    assert quantized.kv == need.kv * 34 // 64


def test_spikingbrain_does_not(hollow):
    model = hollow["spikingbrain"]
    small, large = (forecast(model, n_ctx) for n_ctx in (8192, 1 << 20))
    assert small.kv == large.kv == (4096 + DEFAULT_UBATCH) * 8 * 2 * 512 * 2
    assert small.state == large.state == 8 * 8 * 64 * 64 * 4 == 1 << 20
    assert large.total - small.total < 64 * 2**20  # bookkeeping for a million positions
    assert forecast(model, 1000).kv == 1024 * 8 * 2 * 512 * 2
    whole = forecast(model, 8192, EngineSettings(swa_full=True))
    assert whole.kv == 8192 * 8 * 2 * 512 * 2


def test_other_recurrent_architectures(hollow):
    lfm2 = hollow["lfm2"]
    assert recurrent_layers(lfm2) == [layer not in (2, 5, 8, 10, 12, 14) for layer in range(16)]
    assert forecast(lfm2, 4096).kv == 48 * 2**20
    assert forecast(lfm2, 4096).state == 10 * 2 * 2048 * 4
    rwkv7 = hollow["rwkv7"]
    assert recurrent_layers(rwkv7) == [True] * 24
    assert forecast(rwkv7, 4096).kv == 0
    assert forecast(rwkv7, 4096).state == 24 * (2 + 64) * 2048 * 4


def test_a_context_beyond_simulation_is_on_the_same_line(hollow):
    llama = hollow["llama"]
    assert forecast(llama, 1 << 30).kv == forecast(llama, 1 << 20).kv << 10
    assert forecast(hollow["spikingbrain"], 1 << 40).kv == forecast(hollow["spikingbrain"], 1 << 20).kv


def test_sequences_have_their_own_share(hollow):
    model = hollow["spikingbrain"]
    one, four = (forecast(model, 65536, EngineSettings(n_seq_max=count)) for count in (1, 4))
    assert four.state == 4 * one.state and four.kv == 4 * one.kv
    llama = hollow["llama"]
    assert forecast(llama, 8192, EngineSettings(n_seq_max=4)).kv == forecast(llama, 8192).kv


def test_window_cells_depend_on_the_ubatch(hollow):
    model = hollow["spikingbrain"]
    kv = {n: forecast(model, 65536, EngineSettings(n_ubatch=n)).kv for n in (1, 128, 512, 1000)}
    assert {n: size // (8 * 2 * 512 * 2) for n, size in kv.items()} == {
        1: 4352,
        128: 4352,
        512: 4608,
        1000: 5120,
    }


def test_logits_of_a_whole_batch_are_kept_twice(hollow):
    """In the compute buffer and in the output that is read from."""
    model = hollow["llama"]
    one, whole = (forecast(model, 512, EngineSettings(n_ubatch=512, n_outputs=n)) for n in (1, 512))
    assert whole.buffers - one.buffers == pytest.approx(2 * 4 * 512 * 128256, rel=0.15)


@pytest.mark.parametrize("flash", ["on", "off"])
@pytest.mark.parametrize("name", ["tiny_gguf", "tiny_llama", "tiny_lfm2", "tiny_rwkv7", "golden_gguf"])
def test_the_engine_allocates_what_it_simulated(name, flash, request):
    path = request.getfixturevalue(name)
    settings = EngineSettings(n_ubatch=64, n_outputs=8, flash_attn=flash)
    need = forecast(read_header(path), 1024, settings)
    with (
        Model(path) as model,
        Session(model, n_ctx=1024, n_ubatch=64, n_outputs=8, flash_attn=flash) as session,
    ):
        log = recent_log()
        assert session.kv_bytes == pytest.approx(need.kv, abs=2**20 // 100 * 4)
        assert session.state_bytes == pytest.approx(need.state, abs=2**20 // 100 * 2)
    computed = sum(float(line.split("=")[1].split()[0]) for line in log if "compute buffer size" in line)
    output = 4 * 8 * vocabulary_size(read_header(path))
    rest = need.buffers - output - (54 * 1024 if need.kv else 0)
    assert rest == pytest.approx(computed * 2**20, abs=2**20 // 100)


def test_total(golden_gguf):
    model = read_header(golden_gguf)
    need = forecast(model, 2048)
    assert need.total == need.weights + need.kv + need.state + need.buffers + need.engine
    assert need.repacked == 0  # float32 is used in place
    assert need.beyond_weights().total == need.kv + need.state + need.buffers
    assert need.weights == pytest.approx(sum(tensor.nbytes for tensor in model.tensors), rel=0.01)
    assert need.state == 2 * 2 * 32 * 32 * 4
    alone = forecast_weights(model)
    assert (alone.weights, alone.kv, alone.state, alone.buffers) == (need.weights, 0, 0, 0)


def test_coded_weights_are_used_in_place(tiny, tmp_path):
    from sb_edge.quant.quantize import quantize

    quantize(tiny, tmp_path / "q.gguf", "Q4_0")
    model = read_header(tmp_path / "q.gguf")
    plain, coded = forecast_weights(model, spikes=0), forecast_weights(model, spikes=3)
    assert plain.repacked > coded.repacked
    assert coded.weights - plain.weights == pytest.approx(plain.repacked - coded.repacked, rel=0.1)


def test_layer_maps():
    assert recurrent_layers(header("spikingbrain", LAYERS)) == [True, False] * 8
    without = {name: value for name, value in LAYERS.items() if "recurrent" not in name}
    assert recurrent_layers(header("spikingbrain", without)) == [True, False] * 8
    one = LAYERS | {"attention.recurrent_layers": True}
    assert recurrent_layers(header("spikingbrain", one)) == [True] * 16
    assert recurrent_layers(header("llama", without)) == [False] * 16
    assert recurrent_layers(header("lfm2", LFM2)) == [
        layer not in (2, 5, 8, 10, 12, 14) for layer in range(16)
    ]
    assert vocabulary_size(header("llama", {"vocab_size": 128256})) == 128256


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_count": 0}, "block_count: is impossible"),
        ({"block_count": 2**32 - 1}, "block_count: is impossible"),
        (
            {"attention.recurrent_layers": np.array([True])},
            "is not one value a layer (found 1 values, expected 16)",
        ),
        ({"attention.recurrent_layers": "x"}, "is not one value a layer"),
    ],
)
def test_impossible_layers(changes, problem):
    with pytest.raises(GgufError) as caught:
        recurrent_layers(header("spikingbrain", LAYERS | changes))
    assert problem in str(caught.value)


def test_missing_key():
    with pytest.raises(GgufError, match=r"llama\.block_count: key not found"):
        layer_count(header("llama", {}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spikingbrain.attention.layer_norm_rms_epsilon", "no number"),
        ("spikingbrain.rope.freq_base", "no number"),
        ("spikingbrain.attention.recurrent_layers", (True,)),
        ("general.architecture", "no-such-architecture"),
    ],
)
def test_what_the_engine_refuses_is_said(tiny_gguf, tmp_path, key, value):
    with_metadata(tiny_gguf, tmp_path / "bad.gguf", values={key: value})
    with pytest.raises(GgufError, match="the engine cannot load it") as caught:
        forecast(read_header(tmp_path / "bad.gguf"), 1024)
    assert "\n" not in str(caught.value)


def test_a_process_that_dies_is_said(tiny_gguf, tmp_path, monkeypatch):
    """A file that makes the engine abort must not take this process along."""
    from sb_edge.engine import find_engine

    prefix = tmp_path / "engine"
    (prefix / "bin").mkdir(parents=True)
    manifest = json.loads((find_engine().prefix / "engine.json").read_text())
    (prefix / "engine.json").write_text(json.dumps(manifest | {"files": {}}))
    (prefix / "bin" / "sb-memory").write_text("#!/bin/sh\nkill -ABRT $$\n")
    (prefix / "bin" / "sb-memory").chmod(0o755)
    monkeypatch.setenv("SB_EDGE_ENGINE", str(prefix))
    with pytest.raises(GgufError, match="the engine stopped with signal 6"):
        forecast(read_header(tiny_gguf), 1023)


def test_a_changed_file_is_asked_again(tiny_gguf, tiny_llama, tmp_path):
    path = tmp_path / "m.gguf"
    needs = []
    for file in (tiny_gguf, tiny_llama):
        path.write_bytes(file.read_bytes())
        needs.append(forecast(read_header(path), 1024))
    assert needs == [forecast(read_header(file), 1024) for file in (tiny_gguf, tiny_llama)]
    assert needs[0] != needs[1]


@pytest.mark.parametrize(
    "settings", [{"n_seq_max": 0}, {"n_ubatch": -1}, {"n_outputs": 0}, {"type_k": "f17"}, {"type_v": "f17"}]
)
def test_impossible_settings(settings):
    with pytest.raises(InferenceError):
        EngineSettings(**settings)


def test_impossible_context(tiny_gguf):
    with pytest.raises(InferenceError, match="n_ctx: must be positive"):
        forecast(read_header(tiny_gguf), 0)


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
def test_a_float32_cache_is_forecast_as_it_is_computed(hollow, arch, as_if):
    automatic, explicit = (
        forecast(hollow[arch], 8192, EngineSettings("f32", "f32", flash_attn=choice))
        for choice in ("auto", as_if)
    )
    assert automatic == explicit
