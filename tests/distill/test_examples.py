"""The recipes for large bases, which tests cannot run: their options are those of the command."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from support import sb_edge

from sb_edge.cli import cli

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["distill_llama.sh", "distill_qwen.sh"])
def test_options_of_an_example(name: str) -> None:
    text = (EXAMPLES / name).read_text().replace("\\\n", " ")
    words = shlex.split(next(line for line in text.splitlines() if " distill " in line))
    command = cli.get_command(click.Context(cli), "distill")
    assert command is not None
    context = command.make_context("distill", words[words.index("distill") + 1 :])
    assert dict(context.params["tokens"]).keys() == {"layers", "whole", "long"}


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
