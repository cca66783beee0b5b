"""The comparison of spike counts, on arrays made by hand and on the reference playing the engine's part."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sb_edge.arch.spike_plan import RELEASED_PLAN, SpikePlan
from sb_edge.cli.parity import _render
from sb_edge.evaluate.parity.engine_side import BlockInputs
from sb_edge.evaluate.parity.parity_report import EngineRun, ParityReport
from sb_edge.evaluate.parity.reference_side import Reference
from sb_edge.evaluate.parity.spike_counts import Counts, SpikeParity, compare_counts
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import ParityError
from sb_edge.util.logits import Agreement

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "w8aspike"


def two_projections(total: int = 20_000) -> Counts:
    draw = np.random.default_rng(0)
    return {
        (0, "attn_q"): draw.integers(-9, 9, (total // 100, 100), dtype=np.int32),
        (1, "ffn_up"): draw.integers(-9, 9, (total // 100, 100), dtype=np.int32),
    }


def changed(counts: Counts, key: tuple[int, str], by: int, times: int) -> Counts:
    other = {name: x.copy() for name, x in counts.items()}
    other[key].ravel()[:times] += by
    return other


def parity(differing: int, by: int = 1, required: float | None = None) -> SpikeParity:
    counts = two_projections()
    found = compare_counts(counts, changed(counts, (1, "ffn_up"), by, differing))
    whole = compare_counts(counts, counts)
    return (
        SpikeParity(found, whole, 0.9999) if required is None else SpikeParity(found, whole, required, False)
    )


def report(spikes: SpikeParity) -> ParityReport:
    run = EngineRun(24, Agreement(1e-9, 0.0, 1.0, 3, 1e-9), {})
    return ParityReport("m.gguf", "ckpt", 24, "f32", 1e-2, (run,), spikes=spikes)


def test_equal_counts_agree() -> None:
    found = parity(0)
    assert found.same_inputs.identical == 1
    assert found.same_inputs.total == 40_000
    assert found.same_inputs.largest_difference == 0
    assert found.same_inputs.worst is None
    assert found.passed
    assert report(found).passed


@pytest.mark.parametrize(
    ("differing", "by", "required", "passes"),
    [
        (4, 1, None, True),
        (4, -1, None, True),
        (5, 1, None, False),
        (1, 2, None, False),
        (400, 7, 0.99, True),
        (401, 1, 0.99, False),
        (1, 1, 1.0, False),
        (0, 1, 1.0, True),
    ],
)
def test_nearly_all_counts_must_be_the_same(
    differing: int, by: int, required: float | None, passes: bool
) -> None:
    """By default 0.9999 of them, and the others one apart; a stated share asks for that share only."""
    found = parity(differing, by, required)
    assert found.passed is passes
    assert report(found).passed is passes
    if not passes:
        with pytest.raises(ParityError, match="ffn_up in layer 1: the engine's spike counts differ"):
            report(found).require_passed()


def test_the_worst_projection_has_the_largest_share() -> None:
    counts = two_projections()
    counts[2, "ssm_f"] = np.zeros((5, 4), np.int32)
    other = changed(changed(counts, (0, "attn_q"), 3, 100), (2, "ssm_f"), -1, 1)
    worst = compare_counts(counts, other).worst
    assert worst is not None
    assert (worst.layer, worst.projection, worst.total, worst.differing) == (2, "ssm_f", 20, 1)
    assert compare_counts(counts, other).largest_difference == 3


def test_differences_of_extreme_counts_do_not_wrap() -> None:
    low, high = np.full((1, 1), -(2**31), np.int32), np.full((1, 1), 2**31 - 1, np.int32)
    assert compare_counts({(0, "attn_q"): low}, {(0, "attn_q"): high}).largest_difference == 2**32 - 1


def test_nothing_coded_is_nothing_wrong() -> None:
    empty = compare_counts({}, {})
    assert SpikeParity(empty, empty, 1.0).passed
    json.dumps(SpikeParity(empty, empty, 1.0).to_json(), allow_nan=False)


def test_a_projection_that_one_side_does_not_code_is_named() -> None:
    counts = two_projections()
    lacking = {(0, "attn_q"): counts[0, "attn_q"]}
    with pytest.raises(ParityError, match=r"ffn_up in layer 1: .*not coded in the engine"):
        compare_counts(counts, lacking)
    with pytest.raises(ParityError, match=r"ffn_up in layer 1: .*not coded in the reference"):
        compare_counts(lacking, counts)


def test_counts_of_another_shape_are_named() -> None:
    counts = two_projections()
    with pytest.raises(ParityError, match=r"attn_q in layer 0: .*found \[100, 100\], expected \[200, 100\]"):
        compare_counts(counts, {**counts, (0, "attn_q"): counts[0, "attn_q"][:100]})


def test_json_has_the_documented_fields() -> None:
    document = json.loads(json.dumps(report(parity(3)).to_json(), allow_nan=False))
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    described = text.split("## JSON")[1].split("## Recordings")[0]
    assert all(f"`{name}`" in described for name in document)
    assert document["spike_counts_identical"] == 1 - 3 / 40_000
    assert document["spike_counts_required"] == 0.9999
    assert document["spike_counts_worst"] == {
        "layer": 1,
        "projection": "ffn_up",
        "total": 20_000,
        "differing": 3,
        "largest_difference": 1,
    }
    assert document["spike_counts_end_to_end"]["identical"] == 1
    assert document["spike_counts_passed"] is True
    assert len(document["spike_counts"]) == 2


def test_what_a_person_reads() -> None:
    out = io.StringIO()
    _render(report(parity(3)), Console(file=out, width=120))
    text = out.getvalue()
    assert "99.9925% identical, 3 of 40000 differ, by at most 1; end to end: 100.0000% identical" in text
    assert re.search(r"attn_q +20000 +0 +0 +- +0\b", text)
    assert re.search(r"ffn_up +20000 +3 +1 +1 +0\b", text)


@torch.inference_mode()
def block_inputs(model: SpikingBrain, tokens: list[int]) -> list[BlockInputs]:
    """What the reference's own run puts into the halves of its blocks."""
    seen: dict[str, list[np.ndarray]] = {"attn_norm": [], "mlp_norm": []}
    for block in model.model.layers:
        for name, rows in seen.items():
            block.get_submodule(name).register_forward_pre_hook(
                lambda _norm, inputs, rows=rows: rows.append(inputs[0][0].numpy())
            )
    model(torch.tensor([tokens]))
    return [BlockInputs(*halves) for halves in zip(*seen.values(), strict=True)]


@pytest.mark.parametrize("plan", [RELEASED_PLAN, SpikePlan(k=2.0)])
def test_each_half_from_its_own_inputs_counts_as_the_whole_does(plan: SpikePlan) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6] * 3
    model = SpikingBrain.from_checkpoint(GOLDEN, attention="naive")
    model.set_spikes(plan)
    reference = Reference(GOLDEN, device="cpu", dtype="float32", spikes=plan)
    whole = reference.rows(tokens, per_layer=True)
    assert not any(name.startswith("spike") for name in whole.layers)
    assert set(whole.counts) == {
        (layer, name) for layer in range(4) for name in plan.projections if name != "ssm_f" or layer % 2 == 0
    }
    found = compare_counts(whole.counts, reference.counts(block_inputs(model, tokens)))
    assert found.identical == 1


def test_without_a_plan_the_reference_does_not_spike() -> None:
    assert not Reference(GOLDEN, device="cpu", dtype="float32").rows([1, 2], per_layer=False).counts
