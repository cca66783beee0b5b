"""A step's gradients, where gates start, and which parameters a stage ends with."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_bases import VOCAB

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.distill.adapters import adapt
from sb_edge.distill.base import load_base
from sb_edge.distill.parallel import World
from sb_edge.distill.settings import StageName, StageSettings, TrainingSettings
from sb_edge.distill.stages import GATE_STARTS, Batch, LayerStage, Stage, make_stage, use_training_operator
from sb_edge.distill.student import make_student, merged_weights
from sb_edge.distill.text.gather import TextRequest
from sb_edge.distill.training_run import DistillRecipe, distill
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import SpikeError

CPU = torch.device("cpu")
GLA = (0, 2)
SETTINGS = TrainingSettings(base="", text="", gla_layers=GLA, window=48, adapter_rank=4, stages=())
TOKENS = torch.randint(VOCAB, (4, 64), generator=torch.Generator().manual_seed(0))


def stage_of(base_path: Path, name: StageName, dtype: torch.dtype) -> Stage:
    base = load_base(base_path, CPU)
    student = make_student(base, GLA, window=48, seed=0)
    use_training_operator(student)
    base.model.to(dtype)
    student.to(dtype)
    which = StageSettings(name=name, tokens=1, lengths=(64,), batch=256, learning_rate=1e-3)
    return make_stage(which, SETTINGS, base.model, student, World(CPU))


@pytest.mark.parametrize("name", ["layers", "whole"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_the_micro_batch_is_no_part_of_a_step(
    name: StageName, dtype: torch.dtype, bound: float, tiny_base: Path
) -> None:
    """4 sequences at once, or 3 and 1, 2 at a time, 1 at a time; their weights differ.

    That the difference falls with the unit roundoff shows that it is rounding alone.
    """
    weights = torch.ones(TOKENS.shape, dtype=dtype)
    weights[0, 10:], weights[3, :20] = 0, 4
    batch = Batch(TOKENS, weights)
    steps = []
    for size in (256, 192, 128, 64):
        stage = stage_of(tiny_base, name, dtype)
        for part in batch.parts(size):
            stage.accumulate(part, sync=True)
        losses = stage.finish()
        steps.append((losses, {key: p.grad for group in stage.groups for key, p in group.items()}))
    whole, gradients = steps[0]
    for losses, found in steps[1:]:
        torch.testing.assert_close(losses, whole, rtol=1e-6, atol=0)
        for key, expected in gradients.items():
            assert torch.dist(found[key], expected) <= bound * expected.norm(), key
    assert sum(bool(gradient.norm()) for gradient in gradients.values()) > len(gradients) / 2


def test_gates_start_where_the_error_is_least(tiny_base: Path) -> None:
    """A base whose attention is GLA with known gates: these are found again."""
    base = load_base(tiny_base, CPU)
    student = make_student(base, GLA, window=48, seed=0)
    teacher = copy.deepcopy(student)
    starts = {0: (GATE_STARTS[1], GATE_STARTS[3]), 2: (GATE_STARTS[4], GATE_STARTS[0])}  # of two heads

    def gates(model: Any, layer: int) -> list[torch.Tensor]:
        attention = model.model.layers[layer].attn
        return list(attention.gk_proj[1].bias.detach().split(attention.head_dim))

    for layer, values in starts.items():
        for head, value in enumerate(values):
            gates(teacher, layer)[head].fill_(value)
            gates(student, layer)[head].fill_(value if head else 5.0)
    LayerStage(teacher, student, World(CPU), bf16=False).calibrate(TOKENS)
    for layer, values in starts.items():
        assert [set(part.tolist()) for part in gates(student, layer)] == [{value} for value in values]


def test_the_coded_student_computes_what_its_checkpoint_does(tiny_base: Path) -> None:
    """Adapters apart and merged, with gradients and without: the same counts everywhere, in float64."""
    base = load_base(tiny_base, CPU)
    student = make_student(base, GLA, window=48, seed=0)
    adapt(student, 4, 0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("adapter_out"):
                parameter.normal_(std=0.05)
    student.to(torch.float64)
    merged = SpikingBrain(student.config, base.layout, "naive").to(torch.float64)
    merged.load_state_dict(dict(merged_weights(student, list(merged.state_dict()))))
    seen: list[dict[str, torch.Tensor]] = [{}, {}]
    outputs = []
    for model, tensors in zip((student, merged), seen, strict=True):
        model.set_spikes(SpikePlan(k=2.5, query_k=3.0, kv_rounding=True))
        outputs.append(model.hidden(TOKENS[:1], on_tensor=tensors.__setitem__))
    assert outputs[0].requires_grad
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    counted = [name for name in seen[1] if name.startswith("spike_")]
    assert len(counted) == 4 * student.config.num_hidden_layers
    for name in counted:
        assert torch.equal(seen[0][name], seen[1][name]), name


def test_steps_with_spikes_are_spread_evenly() -> None:
    for share, expected in ((0.5, "0101010101"), (0.3, "0001001001"), (1.0, "1111111111")):
        settings = SETTINGS.model_copy(update={"spikes": SpikePlan(), "spike_share": share})
        assert "".join(str(int(settings.is_coded(step))) for step in range(10)) == expected
    assert not SETTINGS.is_coded(1)


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for a held-out sequence."""
    words = ["river", "stone", "seven", "lamps", "under", "slow", "green", "a", "the", "moves", "over"]
    path = tmp_path_factory.mktemp("text") / "long.txt"
    path.write_text(" ".join(np.random.default_rng(2).choice(words, 2600)))
    return path


def trained(base: Path, folder: Path, text: Path, recipe: DistillRecipe) -> list[float]:
    """Train; the held-out losses that were measured, summed over layers."""
    distill(base, folder, TextRequest((text,)), recipe, device="cpu", save_every=1e9)
    (stage,) = json.loads((folder / "record.json").read_text())["stages"]
    return [sum(point["losses"]) for point in stage["measured"] if "losses" in point]


def test_a_stage_ends_with_the_best_parameters(tiny_base: Path, long_text: Path, tmp_path: Path) -> None:
    """A rate at which the loss rises again; a step of next to no rate measures the kept parameters."""
    wild = StageSettings(name="layers", tokens=512, lengths=(64,), batch=128, learning_rate=3.0)
    recipe = DistillRecipe((wild,), adapter_rank=4, held_out=512, measure_every=128)
    losses = trained(tiny_base, tmp_path / "wild", long_text, recipe)
    assert len(losses) == 4
    assert losses[-1] > 1.05 * min(losses)
    still = wild.model_copy(update={"tokens": 128, "learning_rate": 1e-12})
    kept = replace(recipe, stages=(still,), start=tmp_path / "wild")
    (found,) = trained(tiny_base, tmp_path / "still", long_text, kept)
    assert found == pytest.approx(min(losses), rel=1e-4)


def test_training_with_spikes_lowers_the_loss_with_spikes(
    tiny_base: Path, long_text: Path, tmp_path: Path
) -> None:
    """Both losses are measured, and the plan is in the record; a plan of the wrong size trains nothing."""
    stage = StageSettings(name="whole", tokens=2560, lengths=(64,), batch=128, learning_rate=5e-3)
    recipe = DistillRecipe(
        (stage,), adapter_rank=4, held_out=512, measure_every=128, spikes=SpikePlan(("ffn_up", "ssm_f"))
    )
    trained(tiny_base, tmp_path / "run", long_text, recipe)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    measured = record["stages"][0]["measured"]
    plain, coded = ([point[key][0] for point in measured] for key in ("losses", "spike_losses"))
    assert plain[0] != coded[0]
    assert coded[-1] < 0.9 * coded[0] and plain[-1] < 0.9 * plain[0]
    assert record["settings"]["spikes"]["projections"] == ["ffn_up", "ssm_f"]
    wrong = replace(recipe, spikes=SpikePlan(("ffn_up",), layer_k=((3.0,),)))
    with pytest.raises(SpikeError, match="a k for every layer"):
        trained(tiny_base, tmp_path / "wrong", long_text, wrong)


def test_without_held_out_text_the_last_parameters_stay(
    tiny_base: Path, long_text: Path, tmp_path: Path
) -> None:
    """More measurements change nothing then."""
    which = StageSettings(name="layers", tokens=256, lengths=(64,), batch=128, learning_rate=1e-2)
    for every in (128, 256):
        recipe = DistillRecipe((which,), adapter_rank=4, held_out=0, measure_every=every)
        assert trained(tiny_base, tmp_path / str(every), long_text, recipe) == []
    often, once = (load_file(tmp_path / every / "checkpoint.safetensors") for every in ("128", "256"))
    names = [name for name in often if name.startswith("parameters.")]
    assert names and all(torch.equal(often[name], once[name]) for name in names)


def test_a_run_with_another_micro_batch_trains_the_same(
    tiny_base: Path, long_text: Path, tmp_path: Path
) -> None:
    """Two steps of four sequences, at once and one by one; Adam's steps magnify the smallest gradients."""
    which = StageSettings(name="layers", tokens=512, lengths=(64,), batch=256, learning_rate=1e-2)
    found = []
    for size in (256, 64):
        recipe = DistillRecipe((which,), adapter_rank=4, held_out=0, micro_batch=size)
        assert trained(tiny_base, tmp_path / str(size), long_text, recipe) == []
        found.append(load_file(tmp_path / str(size) / "checkpoint.safetensors"))
    whole, parts = found
    names = [name for name in whole if name.startswith("parameters.")]
    assert len(names) == 16
    for name in names:
        assert torch.dist(whole[name], parts[name]) <= 1e-4 * whole[name].norm(), name
    start = load_file(tiny_base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.dist(whole["parameters.model.layers.0.attn.q_proj.weight"], start) > 1e-2 * start.norm()
