"""The baselines of upstream's own architectures: their sizes, their types and whether they run."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb_edge.bench.baselines import lfm2 as lfm2_shape
from sb_edge.bench.baselines import rwkv7 as rwkv7_shape
from sb_edge.bench.speed.plan import BenchModel, DecodeSettings
from sb_edge.bench.speed.run import run
from sb_edge.gguf.reader import read_header
from sb_edge.memory.forecast import forecast

UNUSED_VALUE_WEIGHTS = 2 * 2048 * 96 + 2048
"""RWKV-7's first layer has no use for these, but llama.cpp asks for them."""


def n_params(module: Any, shape: object) -> int:
    return sum(prod(tensor.shape) for tensor in module._tensors(shape))


def test_shapes_have_the_sizes_of_their_models() -> None:
    """What the published files count."""
    assert n_params(lfm2_shape, lfm2_shape.LFM2_1_2B) == 1_170_340_608
    assert n_params(rwkv7_shape, rwkv7_shape.RWKV7_1_5B) == 1_527_404_544 + UNUSED_VALUE_WEIGHTS


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    shape = lfm2_shape.Lfm2Shape(
        n_layer=1, attention_layers=(), hidden=64, n_head=2, n_head_kv=1, ffn=96, vocab=64
    )
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        lfm2_shape.write_lfm2_gguf(tmp_path / name, "f16", seed=seed, shape=shape)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != third


@pytest.fixture(params=["lfm2", "rwkv7"])
def quantized(request: pytest.FixtureRequest) -> Path:
    from sb_edge.quant.quantize import quantize

    source: Path = request.getfixturevalue(f"tiny_{request.param}")
    target = source.with_name("q4_0.gguf")
    if not target.is_file():
        quantize(source, target, "Q4_0")
    return target


@pytest.mark.engine
def test_types_are_those_of_a_converted_and_quantized_model(quantized: Path) -> None:
    types = {tensor.name: tensor.type for tensor in read_header(quantized).tensors}
    if "blk.0.shortconv.conv.weight" in types:
        assert types["blk.0.shortconv.conv.weight"] == "F32"
        assert types["token_embd.weight"] == "Q6_K"  # it is the output too
        rest = ("blk.0.shortconv.in_proj", "blk.1.attn_q", "blk.1.attn_v", "blk.2.ffn_down")
    else:
        assert {types[f"blk.0.time_mix_{name}.weight"] for name in ("w1", "w2", "lerp_fused")} == {"F32"}
        assert {types[f"blk.1.time_mix_{name}.weight"] for name in ("a1", "v2", "g1")} == {"F16"}
        assert types["output.weight"] == "Q6_K"
        rest = ("token_embd", "blk.0.time_mix_key", "blk.1.channel_mix_value", "blk.1.time_mix_output")
    assert {types[f"{name}.weight"] for name in rest} == {"Q4_0"}


@pytest.mark.engine
def test_logits_are_finite_and_caches_as_forecast(quantized: Path) -> None:
    from sb_edge.runtime.session import Model, Session

    tokens = np.random.default_rng(0).integers(512, size=600).tolist()
    with Model(quantized) as model, Session(model, n_ctx=1024, n_threads=1, n_outputs=1) as session:
        need = forecast(model.header, 1024)
        assert session.kv_bytes == pytest.approx(need.kv, abs=20000)
        assert session.state_bytes == pytest.approx(need.state, abs=20000)
        rows = [session.evaluate(tokens), *(session.evaluate([token]) for token in tokens[:3])]
    assert np.isfinite(rows).all()
    assert np.std(rows, axis=1).min() > 1e-3


@pytest.mark.engine
def test_they_are_measured_like_any_model(quantized: Path) -> None:
    settings = DecodeSettings((0, 40), 1, n_gen=3, repetitions=2)
    rows = run([BenchModel("model", quantized)], settings)
    assert [(row.n_depth, row.fill) for row in rows] == [(0, "real"), (40, "real")]
    assert all(row.median_ts > 0 for row in rows)
