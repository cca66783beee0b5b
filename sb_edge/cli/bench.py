"""`sb-edge bench`: the commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from sb_edge.bench.rows.row_tables import results_table
from sb_edge.bench.selftest.convert_speed import run
from sb_edge.bench.selftest.fill_check import validate_fill
from sb_edge.bench.selftest.memory_check import compare_memory
from sb_edge.bench.sparse.curve import measure_curves
from sb_edge.bench.sparse.sparse_speed import measure_sparse_speed
from sb_edge.bench.speed.plan import DecodeSettings, PrefillSettings
from sb_edge.bench.spikes.spike_speed import measure_spike_speed
from sb_edge.cli.bench_options import (
    Depths,
    Measuring,
    Running,
    cache_options,
    cache_types,
    depths_option,
    measure_and_show,
    measuring_options,
    models_of,
    n_gen_option,
    pair_options,
    running_options,
    show_row,
)
from sb_edge.cli.bench_results import compare, report
from sb_edge.cli.options import integer_option, json_option, text_option, threads_option
from sb_edge.cli.spike_options import SpikeK, run_spikes_options
from sb_edge.evaluate.perplexity import read_text
from sb_edge.memory.forecast import EngineSettings
from sb_edge.models.registry import resolve_gguf
from sb_edge.models.synthetic import resolve_model
from sb_edge.util.output import emit, format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.memory.forecast import FlashChoice


@click.group()
def command() -> None:
    """Measure speed and memory."""


command.add_command(compare)
command.add_command(report)


@command.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
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

    MODEL is a GGUF, `default`, `default-base`, `1b` (preset 1b), or a model of its size to compare it with:
    `llama-1b`, `lfm2-1.2b` or `rwkv7-1.5b` (shapes of Llama-3.2-1B, LFM2-1.2B and RWKV7-World-1.5B). Those
    four have random weights in Q4_0 and are made on first use. Without one, `default` is measured. Several
    cache types are measured in turn: --type-k f16,q8_0 --type-v f16,q8_0. What memory holds at once is
    measured in turns, repetition by repetition, so that ratios are those of neighbours.
    """
    settings = DecodeSettings(depths=depths, n_gen=n_gen, fill=running.fill, **measuring.settings())
    measure_and_show(models or ("default",), settings, running)


@command.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@depths_option("0,1024,4096")
@integer_option("-p", "--n-prompt", default=512, help="Tokens of the prompt to time at each depth.")
@click.option(
    "--fit-beyond",
    type=Depths(),
    default="256k",
    show_default=True,
    help="Measure a Transformer up to this depth; what it would do beyond is fitted.",
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

    MODEL is as for `bench decode`. SpikingBrain prefills for real, in one growing prompt, stopping at each
    depth to time some tokens there. A Transformer's prompt speed is timed after a synthetic fill where a real
    prefill would take hours; its time to the first token is then fitted, and the row says so.
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
    measure_and_show(models or ("default",), settings, running)


@command.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@depths_option("4096")
@n_gen_option
@measuring_options(repetitions=5)
@json_option
def fill(
    models: tuple[str, ...],
    depths: tuple[int, ...],
    n_gen: int,
    measuring: Measuring,
    json_target: str | None,
) -> None:
    """Check the synthetic fill of a Transformer against a real prefill."""
    settings = DecodeSettings(depths=depths, n_gen=n_gen, fill="real", **measuring.settings())
    checks = validate_fill(models_of(models, ("none",)), settings, on_row=show_row)

    def render(console: Console) -> None:
        console.print(results_table([row for check in checks for row in (check.real, check.synthetic)]))
        for check in checks:
            console.print(f"{check.real.model} {check.real.label}: synthetic / real = {check.ratio:.3f}")

    emit([check.to_json() for check in checks], json_target, render)


@command.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@depths_option("4096,32768")
@integer_option("-p", "--n-prompt", default=600, help="Tokens to evaluate, or as many as the context takes.")
@cache_options
@run_spikes_options
@threads_option
@json_option
def memory(
    models: tuple[str, ...],
    depths: tuple[int, ...],
    type_k: tuple[str, ...],
    type_v: tuple[str, ...],
    flash_attn: FlashChoice,
    n_prompt: int,
    spikes: float | None,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Memory forecast against what a process takes.

    MODEL is as for `bench decode`, --depths are the contexts. Each case is measured in a process of its own:
    by how much its resident memory grows when it loads the model, makes the context and evaluates a prompt.
    """
    settings = [
        EngineSettings(kind_k, kind_v, flash_attn=flash_attn, spikes=spikes)
        for kind_k, kind_v in cache_types(type_k, type_v)
    ]
    chosen = models_of(models or ("default",), ("none",))
    cases = compare_memory(chosen, depths, settings, n_prompt=n_prompt, n_threads=threads)

    def render(console: Console) -> None:
        table = Table(title="Growth of a process, MiB")
        for heading in ("model", "context", "cache", "forecast", "measured", "ratio"):
            table.add_column(heading, justify="left" if heading in ("model", "cache") else "right")
        for case in cases:
            sizes = (case.expected.total, case.measured.resident)
            table.add_row(
                case.model,
                str(case.n_ctx),
                f"{case.settings.type_k}/{case.settings.type_v}",
                *(f"{size / 2**20:.1f}" for size in sizes),
                f"{case.ratio:.3f}",
            )
        console.print(table)

    emit([case.to_json() for case in cases], json_target, render)


@command.command()
@click.option(
    "--size",
    "size_gib",
    type=click.FloatRange(1),
    default=2.0,
    show_default=True,
    help="GiB of the checkpoint.",
)
@integer_option("-r", "--repetitions", default=3, help="Times to convert and copy.")
@click.option(
    "--outtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0", "auto"]),
    default="auto",
    show_default=True,
    help="Type of the GGUF.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to work; it takes three times the size."
)
@json_option
def convert(
    size_gib: float, repetitions: int, outtype: str, folder: Path | None, json_target: str | None
) -> None:
    """Conversion speed against plain copying, and its memory."""

    results = run(size_gib, repetitions=repetitions, outtype=outtype, folder=folder)

    def render(console: Console) -> None:
        for result in results:
            console.print(
                f"{format_bytes(result.size_bytes)}: cp {result.copy_seconds:.2f} s, "
                f"convert {result.convert_seconds:.2f} s, {result.ratio:.0%} of the speed of cp, "
                f"peak RSS {format_bytes(result.peak_rss_bytes)}",
                highlight=False,
            )

    emit(results, json_target, render)


@command.command()
@click.argument("model", default="default")
@click.option("--spike-k", type=SpikeK(), help="With this k.  [default: as the file says, else 3]")
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
    """Prompt and decode speed with spikes against without.

    MODEL is a GGUF or a name that `bench decode` takes. The same weights are measured in turns.
    """
    results = measure_spike_speed(
        resolve_model(model).path,
        k=spike_k,
        n_prompt=n_prompt,
        n_gen=n_gen,
        repetitions=repetitions,
        n_threads=threads,
    )

    def render(console: Console) -> None:
        table = Table(title=f"{model}: median tokens per second, {repetitions} pairs")
        for heading in ("test", "without spikes", "with spikes", "with / without", "quartiles"):
            table.add_column(heading, justify="right")
        for result in results:
            low, high = result.quartiles
            table.add_row(
                result.label,
                f"{result.without.median_ts:.2f}",
                f"{result.spiking.median_ts:.2f}",
                f"{result.ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
            )
        console.print(table)

    emit([result.to_json() for result in results], json_target, render)


@command.command()
@click.argument("model", required=False)
@click.option(
    "--synthetic", is_flag=True, help="The products alone, by share of silent channels, instead of MODEL."
)
@text_option
@integer_option("--tokens", default=1024, help="At most so many tokens of the text, for perplexity.", least=2)
@pair_options(64, 64)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the curve of --synthetic, PNG and SVG, to FOLDER.",
)
@threads_option
@json_option
def sparse(
    model: str | None,
    synthetic: bool,
    text: Path | None,
    tokens: int,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    plot: Path | None,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Decoding with a sparse layout against without.

    MODEL is a GGUF that `sb-edge quantize --sparse-layout` made. The same weights are measured in turns, and
    perplexity is of decoding the text token by token.
    """
    from sb_edge.bench.sparse.sparse_tables import curve_table, speed_table

    if (model is None) != synthetic:
        raise click.UsageError("Name either a MODEL or --synthetic.")
    if model is None:
        from sb_edge.bench.sparse.curve_plot import save_curves
        from sb_edge.util.plot import require_plot_folder

        if text is not None:
            raise click.UsageError("--text needs a MODEL, not --synthetic.")
        require_plot_folder(plot)
        curves = measure_curves(repetitions=repetitions, n_threads=threads)
        if plot is not None:
            save_curves(curves, plot)
        emit(
            curves,
            json_target,
            lambda console: console.print(curve_table(curves)),
        )
        return

    if plot is not None:
        raise click.UsageError("--plot needs --synthetic.")
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
