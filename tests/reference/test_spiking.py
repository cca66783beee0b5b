"""The reference with spikes: against recorded logits, in chunks, and the effect of a plan."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn import functional

from sb_edge.arch.coding import int8_round, spike_counts
from sb_edge.arch.spike_plan import PROJECTIONS, RELEASED_PLAN, SpikePlan
from sb_edge.reference.layers import SwiGLU
from sb_edge.reference.network import Cache, SpikingBrain
from sb_edge.reference.spiking import Projection, SharedInput, round_to_counts, sites, straight_through
from sb_edge.util.errors import CheckpointError, SpikeError
from sb_edge.util.logits import compare_logits, nmse
from sb_edge.util.tolerances import GOLDEN_F32, PIECES_F32

DATA = Path(__file__).parents[1] / "data"
SPIKING, PLAIN = DATA / "w8aspike", DATA / "gla_swa"


def golden(folder: Path) -> tuple[Tensor, np.ndarray]:
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["input_ids"].astype(np.int64))[None], arrays["logits"]


@torch.inference_mode()
def logits(model: SpikingBrain, tokens: Tensor) -> np.ndarray:
    return model(tokens)[0].double().numpy()


@torch.inference_mode()
def counts(model: SpikingBrain, tokens: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    model(tokens, on_tensor=seen.__setitem__)
    return {name: x for name, x in seen.items() if name.startswith("spike_")}


@pytest.mark.parametrize("attention", ["naive", "chunk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_w8aspike_reproduces_the_recorded_logits(attention: str, dtype: torch.dtype) -> None:
    tokens, recorded = golden(SPIKING)
    model = SpikingBrain.from_checkpoint(SPIKING, dtype=dtype, attention=attention)
    found = compare_logits(recorded, logits(model, tokens))
    assert found.nmse <= GOLDEN_F32.nmse
    assert found.top1 == 1


def test_gradients_are_those_of_the_uncoded_computation() -> None:
    """Central differences of a SwiGLU whose coding errors are held fixed, for its input and its weights."""
    torch.manual_seed(0)
    coded = SwiGLU(12, 20).double()
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 12, dtype=torch.float64)
    for k, module in zip((2.0, 3.0, 4.0), coded.children(), strict=True):
        assert isinstance(module, Projection)
        module.spike_k = k
    y = coded(x)
    (y * direction).sum().backward()
    gate, up, down = (module.weight for module in (coded.gate_proj, coded.up_proj, coded.down_proj))

    def error(value: Tensor, k: float) -> Tensor:
        counts, threshold = spike_counts(value.detach(), k)
        return counts * threshold.double() - value.detach()

    with torch.no_grad():
        of_gate, of_up = error(x, 2.0), error(x, 3.0)
        inner = functional.silu((x + of_gate) @ gate.T) * ((x + of_up) @ up.T)
        of_down = error(inner, 4.0)

    def surrogate() -> Tensor:
        inner = functional.silu((x + of_gate) @ gate.T) * ((x + of_up) @ up.T)
        return ((inner + of_down) @ down.T * direction).sum()

    torch.testing.assert_close(surrogate(), (y * direction).sum(), rtol=1e-12, atol=0)
    with torch.no_grad():
        for tensor in (x, gate, up, down):
            slopes = torch.empty_like(tensor)
            for at in range(tensor.numel()):
                values = []
                for shift in (1e-6, -2e-6):
                    tensor.view(-1)[at] += shift
                    values.append(surrogate())
                tensor.view(-1)[at] += 1e-6
                slopes.view(-1)[at] = (values[0] - values[1]) / 2e-6
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, slopes, rtol=1e-6, atol=1e-7)


def test_rounded_queries_keys_and_values_pass_gradients() -> None:
    x = torch.randn(2, 5, requires_grad=True)
    for rounded in (round_to_counts(x, 3.0), straight_through(x, int8_round(x.detach()))):
        (slope,) = torch.autograd.grad(rounded.sum(), x)
        assert torch.equal(slope, torch.ones_like(x)) and not torch.equal(rounded, x)


@pytest.mark.parametrize("piece", [1, 5, 7])
def test_pieces_give_what_the_whole_gives(piece: int) -> None:
    """Keys and values are rounded per token, so the cache holds what a whole prompt computes."""
    tokens, _ = golden(SPIKING)
    model = SpikingBrain.from_checkpoint(SPIKING)
    cache = Cache()
    with torch.inference_mode():
        parts = torch.cat([model(part, cache) for part in tokens.split(piece, dim=1)], dim=1)
    assert nmse(logits(model, tokens), parts[0].double().numpy()) <= PIECES_F32.nmse


def test_counts_have_the_engines_names() -> None:
    tokens, _ = golden(SPIKING)
    found = counts(SpikingBrain.from_checkpoint(SPIKING), tokens)
    first = ("attn_q", "attn_output", "ffn_gate")
    assert list(found) == [f"spike_{name}-{layer}" for layer in range(4) for name in first]
    for x in found.values():
        assert (x.shape, x.dtype) == ((1, 24, 128), torch.int32)


def test_float32_and_float64_count_alike_on_the_recorded_prompt() -> None:
    """No value of the recorded case lies next to a rounding edge."""
    tokens, _ = golden(SPIKING)
    single = counts(SpikingBrain.from_checkpoint(SPIKING), tokens)
    double = counts(SpikingBrain.from_checkpoint(SPIKING, dtype=torch.float64), tokens)
    for name, x in single.items():
        assert torch.equal(x, double[name]), name


def test_weights_are_rounded_to_their_scales_but_down_is_not() -> None:
    stored = load_file(SPIKING / "model.safetensors")
    loaded = SpikingBrain.from_checkpoint(SPIKING).state_dict()
    assert loaded.keys() == {name for name in stored if not name.endswith(".scales")}
    for name, weight in loaded.items():
        expected = stored[name]
        if f"{name}_quantizer.scales" in stored and ".down_proj." not in name:
            scales = np.repeat(stored[f"{name}_quantizer.scales"][..., 0], 128, axis=1)
            expected = np.rint(expected / scales) * scales
            assert not np.array_equal(expected, stored[name])
        np.testing.assert_array_equal(weight.numpy(), expected, err_msg=name)


def test_every_part_of_the_released_plan_matters() -> None:
    tokens, recorded = golden(SPIKING)
    model = SpikingBrain.from_checkpoint(SPIKING)
    for plan in (
        None,
        SpikePlan(PROJECTIONS, query_k=3.0, kv_rounding=True),
        SpikePlan(RELEASED_PLAN.projections, kv_rounding=True),
        SpikePlan(RELEASED_PLAN.projections, query_k=3.0),
        SpikePlan(RELEASED_PLAN.projections, k=3.5, query_k=3.0, kv_rounding=True),
    ):
        model.set_spikes(plan)
        assert nmse(recorded, logits(model, tokens)) > 1e-4
    model.set_spikes(RELEASED_PLAN)
    assert nmse(recorded, logits(model, tokens)) <= GOLDEN_F32.nmse


def test_a_plan_goes_on_and_off_any_checkpoint() -> None:
    tokens, recorded = golden(PLAIN)
    model = SpikingBrain.from_checkpoint(PLAIN)
    assert not counts(model, tokens)
    model.set_spikes(SpikePlan())
    assert nmse(recorded, logits(model, tokens)) > 1e-3
    assert counts(model, tokens)["spike_ffn_down-3"].shape == (1, 96, 256)
    model.set_spikes(None)
    assert nmse(recorded, logits(model, tokens)) <= GOLDEN_F32.nmse


def test_a_large_k_approaches_no_spikes() -> None:
    tokens, recorded = golden(PLAIN)
    model = SpikingBrain.from_checkpoint(PLAIN)
    errors = []
    for k in (3.0, 30.0, 300.0):
        model.set_spikes(SpikePlan(k=k, query_k=k))
        errors.append(nmse(recorded, logits(model, tokens)))
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


def test_a_projection_is_its_threshold_times_its_product_of_counts() -> None:
    draw = torch.Generator().manual_seed(0)
    projection = Projection(63, 5).double()
    x = torch.randn(2, 7, 63, generator=draw, dtype=torch.float64)
    assert torch.equal(projection(x), torch.nn.functional.linear(x, projection.weight, projection.bias))
    projection.spike_k = 2.5
    s, threshold = spike_counts(x, 2.5)
    expected = torch.einsum("oi,bti->bto", projection.weight, s.double()) * threshold + projection.bias
    torch.testing.assert_close(projection(x), expected)
    assert torch.equal(projection(SharedInput(x)), projection(x))


def test_the_first_counts_are_those_of_the_normed_embeddings() -> None:
    tokens, _ = golden(SPIKING)
    stored = load_file(SPIKING / "model.safetensors")
    x = stored["model.embeddings.weight"][tokens[0].numpy()].astype(np.float64)
    x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
    x *= stored["model.layers.0.attn_norm.weight"]
    expected = np.rint(x / (np.abs(x).mean(-1, keepdims=True) / 3))
    found = counts(SpikingBrain.from_checkpoint(SPIKING), tokens)["spike_attn_q-0"]
    np.testing.assert_array_equal(found[0].numpy(), expected)


def test_projections_of_one_input_and_one_k_share_their_counts() -> None:
    model = SpikingBrain.from_checkpoint(PLAIN)
    model.set_spikes(SpikePlan())
    gla, swa = (list(sites(model.model.layers[layer])) for layer in (0, 1))
    rest = [("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",)]
    assert gla == [("attn_q", "attn_k", "attn_v", "ssm_f"), *rest]
    assert swa == [("attn_q", "attn_k", "attn_v"), *rest]


def test_every_projection_can_have_its_own_k() -> None:
    names = ("attn_q", "attn_k", "attn_v", "ssm_f", "ffn_gate", "ffn_up")
    rows = ((2.0, 3.0, 2.0, 4.0, 0.0, 2.5),) + 3 * ((0.0,) * 6,)
    model = SpikingBrain.from_checkpoint(PLAIN)
    model.set_spikes(SpikePlan(names, layer_k=rows))
    assert list(sites(model.model.layers[0])) == [("attn_q", "attn_v"), ("attn_k",), ("ssm_f",), ("ffn_up",)]
    assert not list(sites(model.model.layers[1]))
    found = counts(model, golden(PLAIN)[0])
    assert list(found) == ["spike_attn_q-0", "spike_attn_k-0", "spike_ssm_f-0", "spike_ffn_up-0"]
    ratio = found["spike_ssm_f-0"].abs().sum() / found["spike_attn_q-0"].abs().sum()
    assert ratio == pytest.approx(2, rel=0.05)


def test_cached_keys_and_values_are_whole_multiples() -> None:
    cache = Cache()
    with torch.inference_mode():
        SpikingBrain.from_checkpoint(SPIKING, dtype=torch.float64)(golden(SPIKING)[0], cache)
    for x in cache.layers[1]:
        codes = x / (x.abs().amax(-1, keepdim=True) / 127)  # [1, w - 1, Hkv, d]
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)


def test_a_plan_for_another_number_of_layers_is_refused() -> None:
    model = SpikingBrain.from_checkpoint(SPIKING)
    with pytest.raises(SpikeError, match=r"layer_k: .*found 2, expected 4"):
        model.set_spikes(SpikePlan(("attn_q",), layer_k=((3.0,), (3.0,))))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_positive_number_is_named(tmp_path: Path, value: float) -> None:
    shutil.copy(SPIKING / "config.json", tmp_path)
    weights = load_file(SPIKING / "model.safetensors")
    name = "model.layers.2.attn.gk_proj.weight_quantizer.scales"
    weights[name][3] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: holds a scale that is not a positive number"):
        SpikingBrain.from_checkpoint(tmp_path)
