"""Spikes in the engine: integer kernels, recorded counts, overrides, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sb_edge.arch.spike_plan import PROJECTIONS, SpikePlan
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.runtime.session import Model, Session
from sb_edge.runtime.spike_counters import accumulate, code_rows, coded_bytes, count_spikes, record_counts
from sb_edge.util.errors import InferenceError, SpikeError
from sb_edge.util.logits import nmse

pytestmark = pytest.mark.engine

DATA = Path(__file__).parents[1] / "data"
TOKENS = list(range(3, 40))
Q4_0, Q8_0 = 2, 8
BLOCK = 32


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded gla_swa model, F32, without spikes."""
    file = tmp_path_factory.mktemp("spikes") / "gla_swa-f32.gguf"
    convert_checkpoint(DATA / "gla_swa", file, outtype="f32")
    return file


def logits(model: Model) -> np.ndarray:
    with Session(model, n_ctx=64, type_k="f32", type_v="f32") as session:
        return session.evaluate(TOKENS, all_logits=True)


def random_row(rng: np.random.Generator, ggml_type: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A row of weights as it stands in a GGUF, and its integers [blocks, 32]."""
    if ggml_type == Q8_0:
        weights = rng.integers(-128, 128, size=(blocks, BLOCK), dtype=np.int8)
        codes = weights.view(np.uint8)
    else:
        nibbles = rng.integers(0, 16, size=(blocks, BLOCK), dtype=np.uint8)
        weights = nibbles.astype(np.int8) - 8
        codes = nibbles[:, :16] | nibbles[:, 16:] << 4
    scales = rng.standard_normal(blocks).astype(np.float16)[:, None].view(np.uint8)
    return np.ascontiguousarray(np.concatenate((scales, codes), axis=1)), weights.astype(np.int64)


def bursting_rows(rng: np.random.Generator, channels: int) -> np.ndarray:
    """One row of activations with a few channels whose counts reach 20,000 at k = 3."""
    x = rng.standard_normal((1, channels)).astype(np.float32)
    bursts = rng.integers(0, 4)
    x[0, rng.integers(0, channels, size=bursts)] *= rng.uniform(1, 1e4, size=bursts).astype(np.float32)
    return x


@pytest.mark.parametrize("unpacked", [False, True], ids=["few tokens", "many tokens"])
@pytest.mark.parametrize("ggml_type", [Q4_0, Q8_0], ids=["Q4_0", "Q8_0"])
def test_integer_accumulators_are_those_of_int64(ggml_type: int, unpacked: bool) -> None:
    rng = np.random.default_rng(20261122)
    largest = 0
    for _ in range(1000):
        blocks = int(rng.integers(1, 80))
        row, weights = random_row(rng, ggml_type, blocks)
        x = bursting_rows(rng, blocks * BLOCK)
        k = float(rng.choice([0.5, 3, 40, 1000, 20000]))
        counts = code_rows(x, k).counts[0].astype(np.int64)
        largest = max(largest, int(np.abs(counts).max()))
        expected = (weights * counts.reshape(blocks, BLOCK)).sum(axis=1)
        found = accumulate(ggml_type, row, coded_bytes(x, k), blocks * BLOCK, unpacked=unpacked)
        assert (found == expected).all()
    assert largest > 20000


def test_there_is_no_integer_kernel_for_floats() -> None:
    row = np.zeros((1, 128), dtype=np.uint8)
    with pytest.raises(InferenceError, match="no integer kernel"):
        accumulate(0, row, coded_bytes(np.ones((1, 32), np.float32), 3.0), 32, unpacked=False)


def test_a_row_that_is_not_finite_gives_nan_and_no_counts() -> None:
    x = np.ones((2, 40), dtype=np.float32)
    x[1, 7] = np.inf
    coded = code_rows(x, 3.0)
    assert coded.thresholds[0] == np.float32(1 / 3)
    assert np.isnan(coded.thresholds[1]) and not coded.counts[1].any()


@pytest.mark.parametrize("k", [0.0, -1.0, float("nan"), float("inf")])
def test_code_rows_refuses_an_impossible_k(k: float) -> None:
    with pytest.raises(SpikeError, match="positive number"):
        code_rows(np.ones((1, 4), np.float32), k)


def test_many_spikes_are_no_spikes(gguf: Path) -> None:
    with Model(gguf, spikes=0) as off, Model(gguf, spikes=1e5) as fine, Model(gguf, spikes=1.0) as coarse:
        assert off.spike_plan is None
        assert fine.spike_plan == SpikePlan(k=1e5)
        plain = logits(off)
        assert nmse(plain, logits(fine)) < 1e-9
        assert nmse(plain, logits(coarse)) > 1e-3


def test_k_of_one_projection_can_be_changed_between_sessions(gguf: Path) -> None:
    with Model(gguf, spikes=3.0) as model, Model(gguf, spikes=0) as off:
        spiking = logits(model)
        for layer in range(4):
            for name in PROJECTIONS:
                if name != "ssm_f" or model.recurrent_layers[layer]:
                    model.set_spike_k(layer, name, 0.0)
        assert nmse(logits(off), logits(model)) < 1e-10
        model.set_spike_k(2, "ffn_down", 2.0)
        assert model.spike_plan is not None and model.spike_plan.k_of(2, "ffn_down") == 2.0
        assert not np.array_equal(logits(model), spiking)
        with count_spikes(model) as counters:
            logits(model)
        assert [(site.layer, site.projections, site.k) for site in counters.sites()] == [
            (2, ("ffn_down",), 2.0)
        ]


@pytest.mark.parametrize(
    ("layer", "name"), [(1, "ssm_f"), (0, "attn_x"), (99, "attn_q")], ids=["no gate", "no name", "no layer"]
)
def test_only_coded_projections_have_a_k(gguf: Path, layer: int, name: str) -> None:
    with Model(gguf, spikes=3.0) as model, pytest.raises(SpikeError, match="was not coded"):
        model.set_spike_k(layer, name, 2.0)


def test_counts_are_recorded_where_inputs_are_shared(gguf: Path) -> None:
    with Model(gguf, spikes=3.0) as model:
        counts = record_counts(model, TOKENS, type_k="f32", type_v="f32")
        assert counts[0, "attn_q"].counts is counts[0, "ssm_f"].counts
        assert counts[1, "attn_q"].counts is not counts[1, "attn_output"].counts
        assert (1, "ssm_f") not in counts
        assert counts[3, "ffn_down"].counts.shape == (len(TOKENS), 256)
        few = record_counts(model, TOKENS, layers=[2], projections=["attn_v"], type_k="f32", type_v="f32")
        assert list(few) == [(2, "attn_v")]
        assert np.array_equal(few[2, "attn_v"].counts, counts[2, "attn_v"].counts)
        with count_spikes(model) as counters:
            logits(model)
        for site in counters.sites():
            recorded = np.abs(counts[site.layer, site.projections[0]].counts)
            assert np.array_equal(np.bincount(recorded.ravel(), minlength=1024)[:1023], site.histogram[:1023])


def test_counting_needs_spikes(gguf: Path) -> None:
    with Model(gguf) as model:
        with pytest.raises(InferenceError, match="does not spike"), count_spikes(model):
            pass
        with pytest.raises(InferenceError, match="does not spike"):
            record_counts(model, TOKENS)


def test_a_plan_in_the_file_is_what_the_engine_does(gguf: Path, tmp_path: Path) -> None:
    layer_k = tuple((2.0 + layer, 0.0 if layer == 1 else 5.0) for layer in range(4))
    plan = SpikePlan(("attn_q", "ffn_up"), 3.0, layer_k, query_k=3.0, kv_rounding=True)
    file = tmp_path / "planned.gguf"
    with_spike_plan(gguf, file, plan)
    with Model(file) as model:
        assert model.spike_plan == plan
        sites = record_counts(model, TOKENS)
        assert {key: recorded.k for key, recorded in sites.items()} == {
            (layer, name): k
            for layer, row in enumerate(layer_k)
            for name, k in zip(plan.projections, row, strict=True)
            if k
        }
    with Model(file, spikes=4.0) as model:
        assert model.spike_plan is not None
        assert {recorded.k for recorded in record_counts(model, TOKENS).values()} == {4.0}
        assert (1, "ffn_up") not in record_counts(model, TOKENS)


@pytest.mark.parametrize("spikes", [-1.0, float("nan"), float("inf")])
def test_an_impossible_override_is_refused(gguf: Path, spikes: float) -> None:
    with pytest.raises(SpikeError, match="positive number"):
        Model(gguf, spikes=spikes)


def test_rounded_keys_and_values_change_windowed_layers_only(gguf: Path, tmp_path: Path) -> None:
    def layers(plan: SpikePlan) -> dict[str, np.ndarray]:
        file = tmp_path / "rounded.gguf"
        with_spike_plan(gguf, file, plan)
        outputs: dict[str, np.ndarray] = {}
        with (
            Model(file) as model,
            Session(
                model,
                n_ctx=64,
                type_k="f32",
                type_v="f32",
                on_tensor=outputs.__setitem__,
                tensor_filter=r"l_out-\d+",
            ) as session,
        ):
            session.evaluate(TOKENS)
        return outputs

    plain = layers(SpikePlan(("ffn_down",), 1e6))
    rounded = layers(SpikePlan(("ffn_down",), 1e6, query_k=3.0, kv_rounding=True))
    assert np.array_equal(plain["l_out-0"], rounded["l_out-0"])
    assert 0 < nmse(plain["l_out-1"], rounded["l_out-1"]) < 1e-2


def test_spikes_belong_to_one_architecture(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    file = tmp_path / "llama.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SpikeError, match="this architecture has no spikes"):
        Model(file, spikes=3.0)
