"""A run is killed again and again, and ends as if it had not been; two processes do what one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.cli import cli
from sb_edge.distill.settings import StageSettings
from sb_edge.distill.text.gather import TextRequest
from sb_edge.distill.training_run import DistillRecipe, distill

KILLS = 20

RECIPE = DistillRecipe(
    stages=(
        StageSettings(name="layers", tokens=48 * 64, lengths=(32,), batch=64, learning_rate=1e-2),
        StageSettings(name="whole", tokens=16 * 64, lengths=(32,), batch=64, learning_rate=1e-2),
        StageSettings(name="long", tokens=8 * 64, lengths=(32, 64), batch=64, learning_rate=1e-2),
    ),
    window=48,
    micro_batch=32,
    adapter_rank=4,
    spikes=SpikePlan(k=3.0),
)


def make(base: Path, folder: Path, text: Path) -> None:
    """The whole run, on one thread."""
    torch.set_num_threads(1)
    distill(base, folder, TextRequest((text,)), RECIPE, device="cpu", save_every=0)


def written(folder: Path) -> int:
    """When the checkpoint was written; 0: never."""
    path = folder / "checkpoint.safetensors"
    return path.stat().st_mtime_ns if path.exists() else 0


def outcome(folder: Path) -> dict[str, torch.Tensor]:
    """Trained parameters and every step's losses."""
    tensors = load_file(folder / "checkpoint.safetensors")
    return {name: x for name, x in tensors.items() if name.startswith(("parameters.", "curve."))}


def test_killed_at_random_moments_it_ends_with_the_same_bits(
    tiny_base: Path, prose: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sb_edge.distill.training_run"])

    def start(folder: Path) -> multiprocessing.context.ForkServerProcess:
        process = context.Process(target=make, args=(tiny_base, folder, prose))
        process.start()
        return process

    start(tmp_path / "warm").join()  # so that the next one's time is that of the run alone
    began = time.monotonic()
    start(tmp_path / "whole").join()
    duration = time.monotonic() - began
    expected = outcome(tmp_path / "whole")

    moments = random.Random(5)
    killed = tmp_path / "killed"
    exits = []
    for _ in range(KILLS):
        before = written(killed)
        process = start(killed)
        while written(killed) == before:  # until it trains
            time.sleep(0.001)
        process.join(moments.uniform(0.0, 0.02) * duration)
        process.kill()
        process.join()
        exits.append(process.exitcode)
    assert exits == [-signal.SIGKILL] * KILLS
    last = start(killed)
    last.join()
    assert last.exitcode == 0

    found = outcome(killed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    whole, resumed = (
        load_file(run / "student" / "model.safetensors") for run in (tmp_path / "whole", killed)
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(json.loads((killed / "record.json").read_text())["sessions"]) > KILLS
    assert not list(killed.glob(".*.partial-*"))


def test_two_processes_learn_what_one_does(tiny_base: Path, prose: Path, tmp_path: Path) -> None:
    command = [
        "distill", str(tiny_base), "--text", str(prose), "--stages", "layers,whole", "--device", "cpu",
        "--tokens", "layers=640", "--tokens", "whole=640", "--batch", "layers=128", "--batch", "whole=128",
        "--lengths", "layers=32", "--lengths", "whole=32", "--micro-batch", "64", "--adapter-rank", "4",
    ]  # fmt: skip
    launch = {
        "one": ["-m", "sb_edge"],
        "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sb_edge"],
    }
    for name, start in launch.items():
        done = subprocess.run(
            [sys.executable, *start, *command, "-o", str(tmp_path / name)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    one, two = (outcome(tmp_path / name) for name in launch)
    for stage in ("layers", "whole"):
        # The sums of four sequences' gradients are taken in another order.
        torch.testing.assert_close(two[f"curve.{stage}"], one[f"curve.{stage}"], rtol=1e-3, atol=1e-5)
    name = "parameters.model.layers.0.attn.v_proj.weight"
    torch.testing.assert_close(two[name], one[name], rtol=1e-2, atol=1e-4)


def test_sequences_that_cannot_be_shared_out_are_refused(
    tiny_base: Path, prose: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "sb_edge", "distill", str(tiny_base), "-o", str(tmp_path / "run"), "--text", str(prose),
            "--stages", "layers", "--batch", "layers=96", "--lengths", "layers=32", "--device", "cpu",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "3 sequences, 2 processes" in done.stderr


def test_no_option_is_the_beginning_of_one_of_torchrun_s() -> None:
    """Torchrun would take it for an abbreviation, although it stands behind the module's name."""
    command = cli.get_command(click.Context(cli), "distill")
    assert command is not None
    ours = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    theirs = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert not [(own, other) for own in ours for other in theirs if other.startswith(own) and own != "--help"]
