"""Options of the commands that generate text."""

from __future__ import annotations

import os
from typing import Any

import click

from sb_edge.cli.options import (
    Command,
    cache_type_option,
    flash_attn_option,
    gathered,
    spike_k_option,
    threads_option_as,
    tokens_option,
    ubatch_option,
)
from sb_edge.cli.params import PATH, Real, TokenLimit, Tokens
from sb_edge.runtime.generation import Stopping
from sb_edge.runtime.open import Loading
from sb_edge.runtime.sampling import RANGES, Sampling


def _absent(*flags: str, hint: str, is_flag: bool = False) -> Any:
    """An option of llama.cpp that is refused with a hint; click would read `-ngl 9` as `-n gl`."""

    def refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value:
            raise click.UsageError(f"No such option: {flags[0]}; {hint}.")

    return click.option(*flags, hidden=True, expose_value=False, is_flag=is_flag, callback=refuse)


_ABSENT = (
    _absent("-ngl", "--gpu-layers", "--n-gpu-layers", hint="everything runs on the CPU"),
    _absent("-dev", "--device", hint="everything runs on the CPU"),
    _absent("-hf", "-hfr", "--hf-repo", hint="download the file or checkpoint first"),
    _absent(
        "-no-cnv", "--no-conversation", is_flag=True, hint="`generate` continues a text, `chat` converses"
    ),
    _absent("-cnv", "--conversation", is_flag=True, hint="`generate` continues a text, `chat` converses"),
)


def loading_options(command: Command) -> Command:
    """The command takes `loading`, a `Loading`."""
    for absent in _ABSENT:
        command = absent(command)
    return gathered(
        "loading",
        Loading,
        tokens_option("-c", "--ctx-size", "n_ctx", default=8192, help="Context size in tokens.", least=16),
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
            type=PATH,
            multiple=True,
            help="LoRA adapter, a GGUF (repeatable).",
        ),
        spike_k_option,
    )(command)


def sampling_options(command: Command) -> Command:
    """llama.cpp's sampling options, names and defaults; the command takes `sampling`, a `Sampling`."""

    def number(flags: str, field: str, help: str) -> Any:
        least, most = RANGES[field]
        default = getattr(Sampling, field)
        is_real = isinstance(default, float)
        kind: click.ParamType = Real(least, most)
        if not is_real:
            whole = Tokens if field == "repeat_last_n" else click.IntRange
            kind = whole(int(least), int(most))
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
        click.option(
            "-n",
            "--predict",
            "--n-predict",
            "n_predict",
            type=TokenLimit(),
            default=256,
            show_default=True,
            help="Maximum number of tokens; -1: until the model ends.",
        ),
        click.option("--stop", "stops", multiple=True, help="Stop at this text, not shown (repeatable)."),
        click.option(
            "-r",
            "--reverse-prompt",
            "reverse_prompts",
            multiple=True,
            help="Stop after this text, shown (repeatable).",
        ),
    )(command)


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, value: os.environ.update(SB_EDGE_VERBOSE="1") if value else None,
    help="Show the engine's log.",
)
