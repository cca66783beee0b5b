"""The plan that a model gets, and plans that do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sb_edge.arch.model_spikes import (
    change_plan,
    check_plan,
    choose_plan,
    present_projections,
    released_plan,
)
from sb_edge.arch.spike_plan import PROJECTIONS, SpikePlan
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.bench.baselines.llama import LlamaShape, write_llama_gguf
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.rewrite import with_metadata
from sb_edge.util.errors import GgufError, SbEdgeError, SpikeError

PAIR = ["blk.0.ssm_f_a.weight", "blk.0.ssm_f_b.weight", "blk.0.ssm_f_b.bias"]
SWA = [f"blk.1.{name}.weight" for name in PROJECTIONS if name != "ssm_f"]
OTHERS = ["token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.bias"]


def test_present_projections():
    assert present_projections(OTHERS) == ()
    assert present_projections([*OTHERS, *SWA]) == tuple(name for name in PROJECTIONS if name != "ssm_f")
    assert present_projections([*SWA, *PAIR]) == PROJECTIONS
    assert present_projections(["blk.7.ssm_f_b.weight"]) == ("ssm_f",)


def test_released_plan():
    assert released_plan([*SWA, *PAIR]) == SpikePlan(PROJECTIONS[:-1], 3, query_k=3, kv_rounding=True)
    assert "ssm_f" not in released_plan(SWA).projections


def test_choose_plan():
    names = [*SWA, *PAIR]
    assert choose_plan(None, names, None, None) is None
    assert choose_plan(None, names, 2, None) == SpikePlan(PROJECTIONS, 2)
    assert choose_plan(None, SWA, 2, ["ffn_up"]) == SpikePlan(("ffn_up",), 2)
    released = released_plan(names)
    assert choose_plan(released, names, None, None) is released
    assert choose_plan(released, names, 2, None) == replace(released, k=2, query_k=2)
    assert choose_plan(released, names, 2, ["ssm_f"]).projections == ("ssm_f",)
    tuned = SpikePlan(("attn_q",), 3, ((2.0,), (4.0,)))
    assert choose_plan(tuned, names, 2.5, None) == SpikePlan(("attn_q",), 2.5)


@pytest.mark.parametrize(
    ("k", "projections", "problem"),
    [
        (0, None, "k: must be a positive number"),
        (float("nan"), None, "k: must be a positive number"),
        (None, ["attn_q"], "give --spike-k too"),
        (3, [], "must be listed once"),
        (3, ["wq"], "no such projection"),
        (3, ["ssm_f"], "projections: the model has no such projection .found ssm_f, expected attn_q"),
    ],
)
def test_choices_that_are_refused(k, projections, problem):
    with pytest.raises(SpikeError, match=problem):
        choose_plan(None, SWA, k, projections)


def test_change_plan(golden_gguf, tmp_path):
    plain = read_header(golden_gguf)
    assert change_plan(plain, None) is None and change_plan(plain, 0) is None
    assert change_plan(plain, 3) == SpikePlan(k=3)
    with_spike_plan(golden_gguf, tmp_path / "s.gguf", SpikePlan(k=3))
    spiking = read_header(tmp_path / "s.gguf")
    assert check_plan(spiking) == change_plan(spiking, None) == SpikePlan(k=3)
    assert change_plan(spiking, 0) is None
    with pytest.raises(SpikeError):
        change_plan(spiking, 0, ["attn_q"])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"k": 0.0}, "k: must be a positive number"),
        ({"k": -1.0}, "positive number"),
        ({"k": float("nan")}, "positive number"),
        ({"k": "3"}, "spike.k: has the wrong type"),
        ({"projections": ["attn_q", "wq"]}, "no such projection"),
        ({"projections": ["attn_q", "attn_q"]}, "must be listed once"),
        ({"projections": "attn_q"}, "spike.projections: has the wrong type"),
        ({"query_k": -3.0}, "query_k"),
        ({"kv_rounding": 1.0}, "kv_rounding: has the wrong type"),
        ({"layer_k": [1.0, 2.0]}, "layer_k: has the wrong length"),
        ({"layer_k": [float("inf")] * 32}, "positive number"),
        ({"override": 3.0}, "spike.override: is not a known spike key"),
    ],
)
def test_keys_that_are_refused(golden_gguf, tmp_path, values, problem):
    path = tmp_path / "bad.gguf"
    with_spike_plan(golden_gguf, path, SpikePlan(k=3))
    with_metadata(path, path, values={f"spikingbrain.spike.{key}": value for key, value in values.items()})
    with pytest.raises(GgufError) as caught:
        check_plan(read_header(path))
    assert problem in str(caught.value) and "bad.gguf" in str(caught.value)


@pytest.mark.parametrize("key", ["k", "projections"])
def test_keys_that_are_missing(golden_gguf, tmp_path, key):
    with_spike_plan(golden_gguf, tmp_path / "bad.gguf", SpikePlan(k=3))
    name = f"spikingbrain.spike.{key}"
    with_metadata(tmp_path / "bad.gguf", tmp_path / "bad.gguf", values={}, removed=[name])
    with pytest.raises(GgufError, match=f"{name}: is missing"):
        check_plan(read_header(tmp_path / "bad.gguf"))


def test_a_projection_without_a_tensor(golden_gguf, tmp_path):
    with_spike_plan(golden_gguf, tmp_path / "s.gguf", SpikePlan(("ssm_f",)))
    header = read_header(tmp_path / "s.gguf")
    without = replace(header, tensors=[entry for entry in header.tensors if "ssm_f" not in entry.name])
    with pytest.raises(SpikeError, match=r"s\.gguf: spikingbrain\.spike\.projections: .*found ssm_f"):
        check_plan(without)


def test_another_architecture(tmp_path):
    path = tmp_path / "llama.gguf"
    write_llama_gguf(path, shape=LlamaShape(n_layer=1, hidden=64, n_head=4, n_head_kv=2, ffn=96, vocab=128))
    assert check_plan(read_header(path)) is None and change_plan(read_header(path), 0) is None
    with pytest.raises(GgufError, match=r"llama\.gguf: general\.architecture: has no spikes"):
        change_plan(read_header(path), 3)
    with_spike_plan(path, path, SpikePlan(("attn_q",)))
    with pytest.raises(GgufError, match="spike keys belong to another architecture"):
        check_plan(read_header(path))


def test_errors_are_one_line(golden_gguf, tmp_path):
    for plan in (SpikePlan(k=3), SpikePlan(("attn_q",), 3, ((1.0,),) * 4)):
        with_spike_plan(golden_gguf, tmp_path / "s.gguf", plan)
        metadata = {**read_header(tmp_path / "s.gguf").metadata, "spikingbrain.spike.k": np.zeros(3)}
        with pytest.raises(SbEdgeError) as caught:
            check_plan(replace(read_header(tmp_path / "s.gguf"), metadata=metadata))
        assert "\n" not in str(caught.value)
