"""The recipes for large bases, which tests cannot run: their options are those of the command."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import shlex
import sys
from pathlib import Path

import click
import pytest
from support import sb_edge

from sb_edge.cli import cli

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(name: str, *arguments: object) -> list[str]:
    """Lines that a script prints, run in this process."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name))
    return printed.getvalue().splitlines()


def test_maps_by_layers_and_by_heads_keep_as_many_heads(tmp_path: Path) -> None:
    """Three layers of two heads; limits cost most in layer 1, then in single heads."""

    def entry(layer: int, head: int | None, damage: float) -> dict[str, object]:
        return {"layer": layer, "head": head, "damage": damage, "score": {"loss": 3.0}}

    heads = {(0, 0): 0.1, (0, 1): 0.5, (1, 0): 0.9, (1, 1): 0.8, (2, 0): 0.7, (2, 1): 0.2}
    found = {
        "whole": {"loss": 3.0},
        "layers": [entry(layer, None, damage) for layer, damage in enumerate((0.3, 2.0, 0.6))],
        "heads": [entry(layer, head, damage) for (layer, head), damage in heads.items()],
    }
    (tmp_path / "layers.json").write_text(json.dumps(found))
    for share, expected in (
        (0.67, ["layers: --gla-layers 0", "heads:  --gla-layers 0,2 --keep-heads 0:1,2:0"]),
        (0.33, ["layers: --gla-layers 0,2", "heads:  --gla-layers 0,2"]),
    ):
        assert output_of("head_map.py", tmp_path / "layers.json", share) == expected


def test_runs_are_compared_by_their_last_measurements(tmp_path: Path) -> None:
    point = {"tokens": 128, "losses": [0.5], "found": {"passkey": 1.0, "dictionary": 0.25, "facts": 0.0}}
    stages = [
        {"name": "layers", "measured": [point | {"losses": [0.25, 0.75]}]},
        {"name": "whole", "measured": [point, point | {"tokens": 256, "spike_losses": [0.625]}]},
    ]
    (tmp_path / "record.json").write_text(json.dumps({"stages": stages}))
    assert output_of("compare_runs.py", tmp_path)[2:] == [
        f"| {tmp_path.name} | layers | 128 | 0.5000 |  | 100% | 25% | 0% |",
        f"| {tmp_path.name} | whole | 256 | 0.5000 | 0.6250 | 100% | 25% | 0% |",
    ]


@pytest.mark.parametrize("name", ["distill_llama.sh", "distill_qwen.sh"])
def test_options_of_an_example(name: str) -> None:
    text = (EXAMPLES / name).read_text().replace("\\\n", " ")
    words = shlex.split(next(line for line in text.splitlines() if " distill " in line))
    command = cli.get_command(click.Context(cli), "distill")
    assert command is not None
    context = command.make_context("distill", words[words.index("distill") + 1 :])
    assert dict(context.params["tokens"]).keys() == {"layers", "whole", "long"}


def test_commands_of_the_larger_base() -> None:
    """Every command of the script takes its options."""
    text = (EXAMPLES / "qwen_coder.sh").read_text().replace("\\\n", " ").replace("${2:-200k}", "200k")
    lines = [shlex.split(line) for line in text.splitlines() if line.strip().startswith("sb-edge ")]
    names = "inspect layers transplant convert quantize distill convert quantize eval"
    assert [words[1] for words in lines] == names.split()
    for _, name, *arguments in lines:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        command.make_context(name, arguments)


def test_the_recipe_is_read_and_options_override_it(tmp_path: Path) -> None:
    command = cli.get_command(click.Context(cli), "distill")
    assert command is not None
    line = ["base", "-o", "run", "--config", str(EXAMPLES / "distill.toml")]
    params = command.make_context("distill", [*line]).params
    assert (params["gla_layers"], params["packages"]) == ("0,2,4", 200 * 1024)
    assert dict(params["tokens"]) == {"layers": 200 * 1024, "whole": 100 * 1024}
    assert dict(params["lengths"]) == {"layers": (512,)}
    params = command.make_context("distill", [*line, "--gla-layers", "1", "--tokens", "layers=1k"]).params
    assert params["gla_layers"] == "1" and dict(params["tokens"]) == {"layers": 1024}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gla-layer = 1", "gla-layer: unknown key (expected gla-layers?)"),
        ("tokens = [", "is not valid TOML"),
        ("window = -1", "is not a number of tokens"),
        ("packages = true", "packages: has another type (found true, expected a value)"),
        ("text-only = [1]", "expected true or false"),
        (f"seed = {'9' * 5000}", "is not valid TOML (found Exceeds the limit"),
        ("tokens = 5", "'5' is not one of layers"),
    ],
)
def test_a_recipe_that_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    done = sb_edge("distill", "base", "-o", tmp_path / "run", "--config", tmp_path / "r.toml")
    assert done.returncode in (1, 2) and complaint in done.stderr
