"""Prompts on the command line: as text, from a file, from standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sb_edge.cli.params import PATH
from sb_edge.util.errors import InferenceError
from sb_edge.util.input_files import read_text_input
from sb_edge.util.text_files import decode_text

Command = TypeVar("Command", bound=Callable[..., Any])


def prompt_options(command: Command) -> Command:
    """`--prompt` or `--file`; the command takes `prompt`, a text."""

    @wraps(command)
    def with_prompt(*, prompt: str | None, file: Path | None, **values: Any) -> Any:
        if (prompt is None) == (file is None):
            raise click.UsageError("Give a prompt with either -p or -f.")
        is_file = file is not None or prompt == "-"
        return command(prompt=read_prompt(file or Path("-")) if is_file else prompt, **values)

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
    if str(file) != "-":
        return read_text_input(file, InferenceError)
    return decode_text(sys.stdin.buffer.read(), file, InferenceError)


def read_lines() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        InferenceError: a line is not UTF-8.
    """
    for line in sys.stdin.buffer:
        yield decode_text(line, "standard input", InferenceError).rstrip("\n")
