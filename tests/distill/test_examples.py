"""The recipes for large bases, which tests cannot run: their options are those of the command."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

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
