"""`sb-edge bench`: the commands that measure."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.bench.sparse.sparse_speed import measure_sparse_speed
from sb_edge.bench.speed.plan import DecodeSettings, PrefillSettings
from sb_edge.bench.spikes.spike_speed import measure_spike_speed
from sb_edge.cli.bench_options import (
    Measuring,
    Running,
    depths_option,
    measure_and_show,
    measuring_options,
    n_gen_option,
    pair_options,
    running_options,
)
from sb_edge.cli.bench_results import compare, report
from sb_edge.cli.file_options import FileCommand
from sb_edge.cli.options import (
    json_option,
    model_argument,
    models_argument,
    text_option,
    threads_option,
    tokens_option,
)
from sb_edge.cli.params import TokenCounts
from sb_edge.cli.spike_options import SpikeK
from sb_edge.evaluate.perplexity import read_text
from sb_edge.models.registry import resolve_gguf
from sb_edge.util.output import emit
from sb_edge.util.table import Table


@click.group()
def command() -> None:
    """Measure speed and memory."""


command.add_command(compare)
command.add_command(report)


@command.command(cls=FileCommand)
@models_argument(default="default")
@depths_option("0,1024,4096")
@n_gen_option
@measuring_options(repetitions=5)
@running_options
def decode(
    models: tuple[str, ...],
    depths: tuple[int, ...],
    n_gen: int,
    measuring: Measuring,
    running: Running,
) -> None:
    """Decode speed over depth, against the memory bandwidth.

    MODEL is a GGUF or a built-in model, see `sb-edge models`; without one, `default` is measured. Several
    cache types are measured one after the other: -ctk f16,q8_0 -ctv f16,q8_0. Models that fit in memory
    together are interleaved, repetition by repetition, so that ratios compare neighbours.
    """
    settings = DecodeSettings(depths=depths, n_gen=n_gen, fill=running.fill, **measuring.settings())
    measure_and_show(models, settings, running)


@command.command(cls=FileCommand)
@models_argument(default="default")
@depths_option("0,1024,4096")
@tokens_option("-p", "--n-prompt", default=512, help="Prompt tokens to time at each depth.")
@click.option(
    "--fit-beyond",
    type=TokenCounts(),
    default="256k",
    show_default=True,
    help="Measure a Transformer up to this depth; fit its prompt time beyond.",
)
@measuring_options(repetitions=3)
@running_options
def prefill(
    models: tuple[str, ...],
    depths: tuple[int, ...],
    n_prompt: int,
    fit_beyond: tuple[int, ...],
    measuring: Measuring,
    running: Running,
) -> None:
    """Prompt speed over depth, and time to the first token.

    SpikingBrain reads one growing prompt that is timed at each depth. Where a real prefill
    of a Transformer would take hours, its prompt speed is measured after a synthetic context fill, and its
    time to the first token is fitted; the row is marked.
    """
    if len(fit_beyond) != 1:
        raise click.BadParameter("one depth is expected", param_hint="--fit-beyond")
    settings = PrefillSettings(
        depths=depths,
        n_prompt=n_prompt,
        fill=running.fill,
        fit_beyond=fit_beyond[0],
        **measuring.settings(),
    )
    measure_and_show(models, settings, running)


@command.command(cls=FileCommand)
@model_argument(default="default")
@click.option("--spike-k", type=SpikeK(), help="k of every coded input.  [default: as the file says, else 3]")
@pair_options(512, 64)
@threads_option
@json_option
def spikes(
    model: str,
    spike_k: float | None,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Compare prompt and decode speed with and without spikes.

    The same weights are measured with and without spikes, interleaved.
    """
    results = measure_spike_speed(
        resolve_gguf(model),
        k=spike_k,
        n_prompt=n_prompt,
        n_gen=n_gen,
        repetitions=repetitions,
        n_threads=threads,
    )

    table = Table.of(
        results,
        {
            "test": lambda result: result.label,
            "without spikes": lambda result: f"{result.without.median_ts:.2f}",
            "with spikes": lambda result: f"{result.spiking.median_ts:.2f}",
            "with / without": lambda result: f"{result.ratio:.3f}",
            "quartiles": lambda result: "{:.3f} to {:.3f}".format(*result.quartiles),
        },
        title=f"{model}: median tokens per second, {repetitions} pairs",
    )
    emit(results, json_target, lambda console: console.print(table))


@command.command(cls=FileCommand)
@model_argument()
@text_option
@tokens_option("--tokens", default=1024, help="Maximum number of tokens to evaluate.", least=2)
@pair_options(64, 64)
@threads_option
@json_option
def sparse(
    model: str,
    text: Path | None,
    tokens: int,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Compare decoding with and without a sparse layout.

    MODEL is a GGUF that `sb-edge sparsify` made. Both are measured interleaved; perplexity is that of
    decoding the text token by token.
    """
    from sb_edge.bench.sparse.sparse_tables import speed_table

    content, name = read_text(text)
    result = measure_sparse_speed(
        resolve_gguf(model),
        content,
        name=name,
        n_prompt=n_prompt,
        n_gen=n_gen,
        repetitions=repetitions,
        max_tokens=tokens,
        n_threads=threads,
    )
    emit(result, json_target, lambda console: console.print(speed_table(result)))
