"""Options that several commands share: one spelling for each concept, in llama.cpp's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sb_edge.cli.file_options import OutputFile
from sb_edge.cli.params import PATH, Real, Tokens
from sb_edge.cli.spike_options import SpikeK
from sb_edge.system.cpu import MAX_THREADS

Command = TypeVar("Command", bound=Callable[..., Any])

KV_TYPE_NAMES = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
THREADS = click.IntRange(1, MAX_THREADS)
FLASH_ATTN_CHOICE = click.Choice(["auto", "on", "off"])

json_option = click.option(
    "--json",
    "json_target",
    type=OutputFile(path_type=str),
    metavar="FILE",
    help="Write results as JSON to FILE; - for standard output, without the table.",
)

text_option = click.option("--text", type=PATH, help="UTF-8 text file.  [default: a built-in English text]")


def threads_option_as(name: str) -> Callable[[Command], Command]:
    """`--threads` under another parameter name."""
    return click.option(
        "-t",
        "--threads",
        name,
        type=THREADS,
        help="Number of threads.  [default: the fast physical cores]",
    )


threads_option = threads_option_as("threads")


def option_list(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def gathered(name: str, kind: type[Any], *options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Add options whose values reach the command as one argument `name`, a `kind` with a field for each."""
    names = [field.name for field in fields(kind)]

    def add(command: Command) -> Command:
        @wraps(command)
        def gather(**values: Any) -> Any:
            whole = kind(**{each: values.pop(each) for each in names if each in values})
            return command(**{name: whole}, **values)

        return cast(Command, option_list(*options)(gather))

    return add


def integer_option(*names: str, default: int, help: str, least: int = 1) -> Callable[[Command], Command]:
    """Option that takes an integer, at least `least`."""
    return click.option(*names, type=click.IntRange(least), default=default, show_default=True, help=help)


def choice_option(name: str, choices: Sequence[str], default: str, help: str) -> Callable[[Command], Command]:
    """Option that takes one of a few words."""
    return click.option(name, type=click.Choice(choices), default=default, show_default=True, help=help)


def tokens_option(
    *names: str, default: int | None, help: str, least: int = 1
) -> Callable[[Command], Command]:
    """Option that takes a number of tokens: 512, 64k, 1M."""
    return click.option(
        *names, type=Tokens(least), default=default, show_default=default is not None, help=help
    )


def share_option(name: str, default: float, help: str) -> Callable[[Command], Command]:
    """Option that takes a positive share, such as 0.02."""
    kind = Real(0, min_open=True)
    return click.option(name, type=kind, metavar="SHARE", default=default, show_default=True, help=help)


def model_argument(
    name: str = "model", *, default: str | None = None, following: str = ""
) -> Callable[[Command], Command]:
    """The model as an argument or as -m; the command gets it under `name`.

    Args:
        name: Name of the argument.
        default: Model if neither is given.
        following: Name of an optional argument after it, a path, which moves to its place beside -m.
    """

    def add(command: Command) -> Command:
        @wraps(command)
        def chosen(*, model_option: str | None, **values: Any) -> Any:
            argument = values.pop(name)
            if model_option is not None and following and values[following] is None:
                argument, values[following] = None, argument and Path(argument)
            if argument is not None and model_option is not None:
                raise click.UsageError(f"Give the model either as {name.upper()} or with -m.")
            model = argument or model_option or default
            if model is None:
                raise click.UsageError(f"Missing argument '{name.upper()}'.")
            return command(**{name: model}, **values)

        with_option = click.option(
            "-m", "--model", "model_option", metavar="MODEL", help="Same as the argument."
        )
        return cast(Command, click.argument(name, required=False)(with_option(chosen)))

    return add


def models_argument(*, default: str | None = None) -> Callable[[Command], Command]:
    """Models as arguments or as -m; the command gets all of them as `models`.

    Args:
        default: Model if none is given; None: at least one must be.
    """

    def add(command: Command) -> Command:
        @wraps(command)
        def chosen(*, models: tuple[str, ...], models_option: tuple[str, ...], **values: Any) -> Any:
            every = (*models, *models_option) or ((default,) if default else ())
            if not every:
                raise click.UsageError("Missing argument 'MODEL...'.")
            return command(models=every, **values)

        with_option = click.option(
            "-m",
            "--model",
            "models_option",
            metavar="MODEL",
            multiple=True,
            help="Same as an argument (repeatable).",
        )
        metavar = "[MODEL]..." if default else "MODEL..."
        return cast(Command, click.argument("models", metavar=metavar, nargs=-1)(with_option(chosen)))

    return add


def cache_type_option(side: str, kind: click.ParamType | None = None) -> Callable[[Command], Command]:
    """`--cache-type-k` or `--cache-type-v`; the command gets `type_k` or `type_v`."""
    what = {"k": "keys", "v": "values"}[side]
    return click.option(
        f"-ct{side}",
        f"--cache-type-{side}",
        f"type_{side}",
        type=kind or click.Choice(KV_TYPE_NAMES),
        default="f16",
        show_default=True,
        help=f"Type of cached {what}.",
    )


flash_attn_option = click.option(
    "-fa",
    "--flash-attn",
    type=FLASH_ATTN_CHOICE,
    default="auto",
    show_default=True,
    help="Flash attention.",
)

ubatch_option = tokens_option(
    "-ub", "--ubatch-size", "n_ubatch", default=256, help="Prompt tokens computed at once."
)

spike_k_option = click.option(
    "--spike-k",
    "spikes",
    metavar="K",
    type=SpikeK(zero=True, file=True),
    help="k of every coded input; 0: no spikes; file: as the file says.  [default: file]",
)
