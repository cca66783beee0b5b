"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

KV_TYPE_NAMES = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

json_option = click.option(
    "--json",
    "json_target",
    metavar="FILE",
    help="Write JSON to FILE; - for standard output, and nothing else there.",
)

text_option = click.option(
    "--text", type=click.Path(path_type=Path), help="A UTF-8 text file.  [default: a built-in English text]"
)


def integer_option(*names: str, default: int, help: str, least: int = 1) -> Callable[[Command], Command]:
    """An option that takes an integer, at least `least`."""
    return click.option(*names, type=click.IntRange(least), default=default, show_default=True, help=help)


threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), help="Threads.  [default: the fast physical cores]"
)


def session_options(command: Command) -> Command:
    """Context size, threads and KV types of a session."""
    for option in (
        click.option(
            "--kv-type",
            type=click.Choice(KV_TYPE_NAMES),
            default="f16",
            show_default=True,
            help="Type of the KV cache.",
        ),
        threads_option,
        integer_option("-c", "--context", default=8192, help="Context in tokens.", least=16),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """llama.cpp's sampling options, with its names and defaults."""
    for option in (
        click.option(
            "--seed", type=click.IntRange(min=0, max=2**32 - 1), help="Makes the answer repeatable."
        ),
        integer_option("--repeat-last-n", default=64, help="Tokens that --repeat-penalty looks at.", least=0),
        click.option(
            "--repeat-penalty",
            type=click.FloatRange(min=0, min_open=True),
            default=1.0,
            show_default=True,
            help="Above 1: repeat less.",
        ),
        click.option(
            "--min-p",
            type=click.FloatRange(0, 1),
            default=0.05,
            show_default=True,
            help="Drop tokens below this share of the likeliest.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1),
            default=0.95,
            show_default=True,
            help="Keep the likeliest tokens up to this probability.",
        ),
        integer_option("--top-k", default=40, help="Keep the k likeliest tokens; 0: all.", least=0),
        click.option(
            "--temp",
            type=click.FloatRange(min=0),
            default=0.8,
            show_default=True,
            help="Temperature; 0: greedy.",
        ),
        integer_option("-n", "--n-predict", default=256, help="At most so many new tokens."),
    ):
        command = option(command)
    return command
