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

from sb_edge.distill.base import load_base
from sb_edge.distill.parallel import World
from sb_edge.distill.settings import StageName, StageSettings, TrainingSettings
from sb_edge.distill.stages import GATE_STARTS, Batch, LayerStage, Stage, make_stage, use_training_operator
from sb_edge.distill.student import make_student
from sb_edge.distill.text.gather import TextRequest
from sb_edge.distill.training_run import DistillRecipe, distill

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
