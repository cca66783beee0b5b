"""Options that several commands share: one spelling for each concept, in llama.cpp's words."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sb_edge.cli.file_options import OutputFile
from sb_edge.cli.params import Real, Tokens
from sb_edge.cli.spike_options import SpikeK
from sb_edge.runtime.binding import MAX_THREADS
from sb_edge.runtime.generation import Stopping
from sb_edge.runtime.open import Loading
from sb_edge.runtime.sampling import RANGES, Sampling

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

text_option = click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 text file.  [default: a built-in English text]"
)

threads_option = click.option(
    "-t",
    "--threads",
    type=THREADS,
    help="Number of threads.  [default: the fast physical cores]",
)


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


def model_argument(name: str = "model", *, default: str | None = None) -> Callable[[Command], Command]:
    """The model as an argument or as -m; the command gets it under `name`."""

    def add(command: Command) -> Command:
        @wraps(command)
        def chosen(*, model_option: str | None, **values: Any) -> Any:
            argument = values.pop(name)
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

context_option = tokens_option(
    "-c", "--ctx-size", "n_ctx", default=8192, help="Context size in tokens.", least=16
)

ubatch_option = tokens_option(
    "-ub", "--ubatch-size", "n_ubatch", default=256, help="Prompt tokens computed at once."
)


def loading_options(command: Command) -> Command:
    """The command takes `loading`, a `Loading`."""
    return gathered(
        "loading",
        Loading,
        context_option,
        threads_option_as("n_threads"),
        tokens_option("-b", "--batch-size", "n_batch", default=512, help="Prompt tokens per call."),
        ubatch_option,
        cache_type_option("k"),
        cache_type_option("v"),
        flash_attn_option,
        click.option(
            "--no-mmap",
            "use_mmap",
            is_flag=True,
            flag_value=False,
            default=True,
            help="Read the weights instead of mapping the file.",
        ),
        click.option("--mlock", "use_mlock", is_flag=True, help="Keep the weights in physical memory."),
        click.option(
            "--lora",
            "loras",
            type=click.Path(path_type=Path),
            multiple=True,
            help="LoRA adapter, a GGUF (repeatable).",
        ),
        spike_k_option,
    )(command)


def threads_option_as(name: str) -> Callable[[Command], Command]:
    """`--threads` under another parameter name."""
    return click.option(
        "-t",
        "--threads",
        name,
        type=THREADS,
        help="Number of threads.  [default: the fast physical cores]",
    )


def sampling_options(command: Command) -> Command:
    """llama.cpp's sampling options, names and defaults; the command takes `sampling`, a `Sampling`."""

    def number(flags: str, field: str, help: str) -> Any:
        least, most = RANGES[field]
        default = getattr(Sampling, field)
        is_real = isinstance(default, float)
        kind = Real(least, most) if is_real else click.IntRange(int(least), int(most))
        shown = default is not None
        return click.option(*flags.split(), field, type=kind, default=default, show_default=shown, help=help)

    return gathered(
        "sampling",
        Sampling,
        number("--temp", "temperature", "Temperature; 0: greedy."),
        number("--top-k", "top_k", "Keep the k most likely tokens; 0: all."),
        number("--top-p", "top_p", "Keep the most likely tokens up to this probability."),
        number("--min-p", "min_p", "Drop tokens below this share of the most likely."),
        number("--repeat-penalty", "repeat_penalty", "Penalty for repeated tokens; 1: none."),
        number("--repeat-last-n", "repeat_last_n", "Number of recent tokens that penalties look at."),
        number("--presence-penalty", "presence_penalty", "Penalty for tokens that occurred."),
        number("--frequency-penalty", "frequency_penalty", "Penalty for each occurrence."),
        number("-s --seed", "seed", "Random seed.  [default: a random one]"),
        click.option("--grammar", help="GBNF grammar that the output follows."),
        click.option(
            "-j", "--json-schema", help="JSON schema that the output follows; {} for any JSON object."
        ),
    )(command)


def stopping_options(command: Command) -> Command:
    """`-n`, `--stop` and `--reverse-prompt`; the command takes `stopping`, a `Stopping`."""
    return gathered(
        "stopping",
        Stopping,
        tokens_option(
            "-n",
            "--predict",
            "--n-predict",
            "n_predict",
            default=256,
            help="Maximum number of tokens.",
        ),
        click.option("--stop", "stops", multiple=True, help="Stop at this text, not shown (repeatable)."),
        click.option(
            "-r",
            "--reverse-prompt",
            "reverse_prompts",
            multiple=True,
            help="Stop after it (repeatable).",
        ),
    )(command)


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, value: _show_log() if value else None,
    help="Show the engine's log.",
)


def _show_log() -> None:
    os.environ["SB_EDGE_VERBOSE"] = "1"


def _spike_k(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    return None if value in (None, "file") else float(SpikeK(zero=True).convert(value, param, ctx))


spike_k_option = click.option(
    "--spike-k",
    "spikes",
    metavar="K",
    callback=_spike_k,
    help="k of every coded input; 0: no spikes; file: as the file says.  [default: file]",
)
