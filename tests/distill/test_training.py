"""Stages make their losses smaller; what goes wrong is named and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import exit_code, sb_edge
from tiny_bases import VOCAB, write_base

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.distill.base import load_base
from sb_edge.distill.settings import StageSettings
from sb_edge.distill.student import make_student, merged_weights
from sb_edge.distill.text.gather import TextRequest
from sb_edge.distill.training_run import DistillRecipe, distill
from sb_edge.reference.layers import HeadHybridAttention
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import ConfigError, TrainingError
from sb_edge.util.logits import nmse
from sb_edge.util.tolerances import TRAINED

CPU = torch.device("cpu")
LAYERS = StageSettings(name="layers", tokens=6400, lengths=(64,), batch=128, learning_rate=1e-2)
WHOLE = StageSettings(name="whole", tokens=3200, lengths=(64,), batch=128, learning_rate=5e-3)
RECIPE = DistillRecipe(stages=(LAYERS, WHOLE), adapter_rank=4)


def make(
    base: Path, folder: Path, text: Path, recipe: DistillRecipe = RECIPE, save_every: float = 1e9
) -> Path:
    return distill(base, folder, TextRequest((text,)), recipe, device="cpu", save_every=save_every)


@pytest.fixture(scope="module")
def finished(tiny_base: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    make(tiny_base, folder, prose)
    return folder


def test_an_untrained_student_is_a_transplant(tiny_base: Path, tmp_path: Path) -> None:
    transplant(tiny_base, tmp_path / "transplant", dtype="f32", window=48)
    expected = Checkpoint.open(tmp_path / "transplant")
    student = make_student(load_base(tiny_base, CPU), None, window=48, seed=0)
    assert student.config == expected.config
    found = dict(merged_weights(student, expected.names))
    assert all((found[name].numpy() == expected.read(name)).all() for name in expected.names)


def test_the_teacher_is_the_base(tmp_path: Path) -> None:
    """All layers SWA with a window beyond the text: the computation of a transplant without GLA."""
    base = write_base(tmp_path / "base", bias=True)
    transplant(base, tmp_path / "none", gla_layers=[], dtype="f32", window=64)
    tokens = torch.randint(VOCAB, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = SpikingBrain.from_checkpoint(tmp_path / "none")(tokens)
        found = load_base(base, CPU).model(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_both_stages_learn(finished: Path) -> None:
    record = json.loads((finished / "record.json").read_text())
    for stage in record["stages"]:
        losses = [sum(point["losses"]) for point in stage["curve"]]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), stage["name"]
    assert record["text"]["tokens_by_licence"] == {"as given by the user": record["text"]["tokens"]}
    assert (finished / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_student_keeps_everything_else(finished: Path, tiny_base: Path) -> None:
    base, student = (load_file(folder / "model.safetensors") for folder in (tiny_base, finished / "student"))
    saved = load_file(finished / "checkpoint.safetensors")
    trained = {name.removeprefix("parameters."): x for name, x in saved.items()}
    same = {
        "embeddings.weight": "embed_tokens.weight",
        "layers.1.mlp_norm.weight": "layers.1.post_attention_layernorm.weight",
    }
    for ours, theirs in same.items():
        assert torch.equal(student[f"model.{ours}"], base[f"model.{theirs}"])
    swa = "model.layers.1.attn.v_proj."
    adapter = trained[swa + "adapter_out"] @ trained[swa + "adapter_in"]
    merged = base["model.layers.1.self_attn.v_proj.weight"] + adapter
    torch.testing.assert_close(student[swa + "weight"], merged)
    gla = "model.layers.0.attn.q_proj.weight"
    assert torch.equal(student[gla], trained[gla])
    assert not torch.equal(student[gla], base["model.layers.0.self_attn.q_proj.weight"])


@pytest.mark.engine
def test_the_engine_computes_what_the_trained_student_does(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "student.gguf"
    assert exit_code("convert", finished / "student", "--outtype", "f32", "--outfile", target) == 0
    assert exit_code("parity", target, finished / "student", "--cache-type-k", "f32") == 0


def test_a_finished_run_is_left_as_it_is(finished: Path, tiny_base: Path, prose: Path) -> None:
    before = (finished / "checkpoint.safetensors").read_bytes()
    assert make(tiny_base, finished, prose) == finished / "student"
    assert (finished / "checkpoint.safetensors").read_bytes() == before


def test_other_settings_are_refused(finished: Path, tiny_base: Path, prose: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"settings \(found seed 1, not 0\); repeat"):
        make(tiny_base, finished, prose, replace(RECIPE, seed=1))
    other = write_base(tmp_path / "other", rms_norm_eps=1e-6)
    with pytest.raises(TrainingError, match="found base "):
        make(other, finished, prose)


def test_layers_start_as_another_run_left_them(
    finished: Path, tiny_base: Path, prose: Path, tmp_path: Path
) -> None:
    """Layers that are GLA in both; a step with next to no rate leaves them there."""
    still = LAYERS.model_copy(update={"tokens": 128, "learning_rate": 1e-9})
    make(tiny_base, tmp_path / "second", prose, DistillRecipe((still,), gla_layers=(0, 1), start=finished))
    theirs, ours, base = (
        load_file(folder / "model.safetensors")
        for folder in (finished / "student", tmp_path / "second" / "student", tiny_base)
    )
    shared = [name for name in ours if name.startswith("model.layers.0.attn.")]
    assert len(shared) == 8
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-8)
    untrained = ours["model.layers.1.attn.q_proj.weight"]
    torch.testing.assert_close(untrained, base["model.layers.1.self_attn.q_proj.weight"], rtol=0, atol=1e-8)


def test_adapters_go_on_where_a_run_of_the_same_shape_left_them(
    finished: Path, tiny_base: Path, prose: Path, tmp_path: Path
) -> None:
    """With another rank they begin anew, which leaves a projection as it is in the base."""
    still = WHOLE.model_copy(update={"tokens": 128, "learning_rate": 1e-9})
    for rank in (4, 2):
        recipe = DistillRecipe((still,), adapter_rank=rank, start=finished)
        make(tiny_base, tmp_path / str(rank), prose, recipe)
    theirs, same, other, base = (
        load_file(folder / "model.safetensors")
        for folder in (finished / "student", tmp_path / "4/student", tmp_path / "2/student", tiny_base)
    )
    assert same.keys() == theirs.keys()
    for name, wanted in theirs.items():
        torch.testing.assert_close(same[name], wanted, rtol=0, atol=1e-7)
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(other[name], base[name], rtol=0, atol=1e-7)
    assert (theirs[name] - base[name]).abs().max() > 1e-4
    gate = "model.layers.0.attn.q_proj.weight"
    torch.testing.assert_close(other[gate], theirs[gate], rtol=0, atol=1e-7)


def test_the_student_comes_back_from_base_and_delta(finished: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Up to the rounding of Q8_0; untrained parts are the base's."""
    adapter_file = finished / "trained.gguf"
    report = transplant(tiny_base, tmp_path / "again", dtype="f32", trained=adapter_file)
    assert report.config.sliding_window == RECIPE.window and report.n_new == 0
    expected, found = (
        load_file(folder / "model.safetensors") for folder in (finished / "student", tmp_path / "again")
    )
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        wide, narrow = (x.numpy().reshape(1, -1) for x in (wanted, found[name]))
        assert nmse(wide, narrow) < TRAINED.nmse, name
    assert torch.equal(found["model.embeddings.weight"], expected["model.embeddings.weight"])
    assert adapter_file.stat().st_size < 0.35 * (finished / "checkpoint.safetensors").stat().st_size


def test_a_start_that_does_not_fit_is_refused(
    finished: Path, tiny_base: Path, prose: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        TrainingError, match=r"trains none of these GLA layers \(found 0,2, expected some of 1"
    ):
        make(tiny_base, tmp_path / "none", prose, replace(RECIPE, gla_layers=(1,), start=finished))
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: --start-from: not found"):
        make(tiny_base, tmp_path / "missing", prose, replace(RECIPE, start=tmp_path / "nowhere"))
    other = write_base(tmp_path / "other", rms_norm_eps=1e-6)
    with pytest.raises(TrainingError, match="was trained from another base"):
        make(other, tmp_path / "foreign", prose, replace(RECIPE, start=finished))


def with_metadata(text: str) -> bytes:
    header = json.dumps({"__metadata__": {"sb_edge.distill": text}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\0\0\0\0\0\0\0{}",
        b"not a checkpoint at all",
        with_metadata("[]"),
        with_metadata("[" * 20_000),
        with_metadata('{"settings": 1, "progress": 9' + "9" * 5000 + "}"),
    ],
    ids=["empty", "cut off", "text", "a list", "deep", "long number"],
)
def test_a_damaged_checkpoint_is_refused(
    tiny_base: Path, prose: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: is not a checkpoint of distillation"):
        make(tiny_base, tmp_path, prose)


def test_heads_that_keep_window_attention(tiny_base: Path, prose: Path, tmp_path: Path) -> None:
    """Both stages train such a student; the reference loads its checkpoint, the converter refuses it."""
    recipe = replace(RECIPE, kept_heads=((0, 1),))
    make(tiny_base, tmp_path / "run", prose, recipe)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    for stage in record["stages"]:
        losses = [sum(point["losses"]) for point in stage["curve"]]
        assert losses[-1] < 0.9 * losses[0], stage["name"]
    assert not (tmp_path / "run" / "trained.gguf").exists()
    student = SpikingBrain.from_checkpoint(tmp_path / "run" / "student")
    assert student.config.attn_heads == [[1], [], [], []]
    assert type(student.model.layers[0].attn) is HeadHybridAttention
    done = sb_edge("convert", tmp_path / "run" / "student", "-o", tmp_path / "x.gguf")
    assert done.returncode == 1 and "attn_heads: the engine does not support" in done.stderr
    with pytest.raises(ConfigError, match=r"kept heads: \S*attn_heads: \[0\] of layer 1 are not some of"):
        make(tiny_base, tmp_path / "wrong", prose, replace(RECIPE, kept_heads=((1, 0),)))


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(
    tiny_base: Path, prose: Path, tmp_path: Path
) -> None:
    wild = replace(RECIPE, stages=(LAYERS.model_copy(update={"learning_rate": 1e30}),))
    with pytest.raises(TrainingError, match=r"stage layers, step \d+, layer 0: the loss is not finite"):
        make(tiny_base, tmp_path, prose, wild, save_every=0)
    saved = load_file(tmp_path / "checkpoint.safetensors")
    kept = {name: x for name, x in saved.items() if name.startswith("parameters.")}
    assert kept and all(bool(x.isfinite().all()) for x in kept.values())
    assert not (tmp_path / "student").exists()
    with pytest.raises(TrainingError, match="not finite"):  # from that checkpoint, the same again
        make(tiny_base, tmp_path, prose, wild, save_every=0)


@pytest.mark.parametrize("spikes", [None, SpikePlan()])
def test_a_diverging_whole_stage_names_the_layer(
    tiny_base: Path, prose: Path, tmp_path: Path, spikes: SpikePlan | None
) -> None:
    stage = WHOLE.model_copy(update={"learning_rate": 1e30})
    wild = replace(RECIPE, stages=(stage,), spikes=spikes, spike_share=1.0)
    with pytest.raises(TrainingError, match=r"stage whole, step \d+, (layer \d|KL|model\.)"):
        make(tiny_base, tmp_path, prose, wild)


def test_a_base_of_another_shape_is_refused(prose: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", hidden_act="gelu")
    with pytest.raises(ConfigError, match="hidden_act"):
        make(base, tmp_path / "run", prose)


def test_bf16_learns_too(tiny_base: Path, prose: Path, tmp_path: Path) -> None:
    make(tiny_base, tmp_path, prose, replace(RECIPE, bf16=True))
    record = json.loads((tmp_path / "record.json").read_text())
    for stage in record["stages"]:
        losses = [sum(point["losses"]) for point in stage["curve"]]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(("minutes", "is_several"), [(1e-6, False), (0.05, True)])
def test_minutes_become_steps(
    tiny_base: Path, prose: Path, tmp_path: Path, minutes: float, is_several: bool
) -> None:
    """Three seconds are several steps of a few milliseconds on a busy machine, too; a moment is one."""
    stage = StageSettings(name="layers", minutes=minutes, lengths=(64,), batch=128, learning_rate=1e-2)
    make(tiny_base, tmp_path, prose, replace(RECIPE, stages=(stage,)))
    steps = json.loads((tmp_path / "record.json").read_text())["stages"][0]["steps"]
    assert (steps > 1) == is_several


def test_a_full_disk_is_named_and_nothing_is_lost(tiny_base: Path, prose: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: without the optimizer's moments a checkpoint fits."""
    script = (
        "import resource, sys; from sb_edge.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); main(sys.argv[1:])"
    )
    command = [
        sys.executable, "-c", script, "distill", tiny_base, "-o", tmp_path, "--text", prose,
        "--stages", "layers", "--tokens", "layers=6400", "--lengths", "layers=64", "--batch", "layers=128",
        "--lr", "layers=1e-2", "--adapter-rank", "4", "--save-every", "0", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "checkpoint.safetensors: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".*.partial-*"))
    make(tiny_base, tmp_path, prose, replace(RECIPE, stages=(LAYERS,)))
    assert (tmp_path / "student").is_dir()


def test_a_plan_is_taken_from_a_gguf(tiny_base: Path, prose: Path, tmp_path: Path, golden_gguf: Path) -> None:
    """A k for each projection reaches the record; a file without a plan is named."""
    plan = SpikePlan(("attn_q", "ffn_down"), layer_k=((2.0, 0.0), (3.0, 4.5), (1.5, 2.5), (0.125, 3.0)))
    with_spike_plan(golden_gguf, tmp_path / "planned.gguf", plan)
    command = [
        "distill", tiny_base, "-o", tmp_path / "run", "--text", prose, "--stages", "whole", "--device", "cpu",
        "--tokens", "whole=128", "--batch", "whole=64", "--lengths", "whole=32", "--adapter-rank", 2,
    ]  # fmt: skip
    assert exit_code(*command, "--spikes", tmp_path / "planned.gguf", "--spike-share", 0.75) == 0
    settings = json.loads((tmp_path / "run" / "record.json").read_text())["settings"]
    assert settings["spikes"]["layer_k"] == [list(row) for row in plan.layer_k or ()]
    assert (settings["spikes"]["projections"], settings["spike_share"]) == (["attn_q", "ffn_down"], 0.75)
    assert exit_code(*command, "--spikes", golden_gguf) == 1


def test_two_runs_do_not_share_a_folder(tiny_base: Path, prose: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(TrainingError, match="another process"):
        make(tiny_base, tmp_path, prose)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "layer=3"], "not one of layers, whole, long"),
        (["--tokens", "layers=-3"], "'-3' is not a number of tokens"),
        (["--tokens", "layers=1:2"], "more than one value"),
        (["--stages", "whole,layers"], "--stages"),
        (["--keep-heads", "18"], "not a layer and a head"),
        (["--spikes", "0"], "'0' is not a positive number"),
        (["--spikes", "nan"], "'nan' is not a positive number"),
    ],
)
def test_bad_options_are_usage_errors(options: list[str], message: str) -> None:
    done = sb_edge("distill", "base", "-o", "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
