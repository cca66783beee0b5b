"""Prompts on the command line: as text, from a file, from standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sb_edge.cli.params import PATH
from sb_edge.util.files import reading_utf8

Command = TypeVar("Command", bound=Callable[..., Any])


def prompt_options(command: Command) -> Command:
    """`--prompt` or `--file`; the command takes `prompt`, a text."""

    @wraps(command)
    def with_prompt(*, prompt: str | None, file: Path | None, **values: Any) -> Any:
        if (prompt is None) == (file is None):
            raise click.UsageError("Give a prompt with either -p or -f.")
        text = read_prompt(file) if file is not None else prompt
        return command(prompt=sys.stdin.read() if text == "-" and file is None else text, **values)

    file_option = click.option(
        "-f",
        "--file",
        type=PATH,
        help="Read the prompt from FILE; - for stdin.",
    )
    prompt_option = click.option("-p", "--prompt", help="Prompt; - reads standard input.")
    return cast(Command, prompt_option(file_option(with_prompt)))


def read_prompt(file: Path) -> str:
    """The text of a UTF-8 file, or of standard input for "-".

    Raises:
        InferenceError: not UTF-8.
    """
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    with reading_utf8(file):
        return data.decode("utf-8")
