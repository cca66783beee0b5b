"""`sb-edge selftest`: checks of the benchmark, the forecast and the operators themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sb_edge.arch.spike_plan import DEFAULT_K
from sb_edge.bench.rows.row_tables import results_table
from sb_edge.bench.selftest.convert_speed import run as convert_speed
from sb_edge.bench.selftest.fill_check import validate_fill
from sb_edge.bench.selftest.memory_check import compare_memory
from sb_edge.bench.sparse.curve import measure_curves
from sb_edge.bench.speed.plan import DecodeSettings
from sb_edge.bench.spikes.theory import check_synthetic
from sb_edge.cli.bench_options import (
    Measuring,
    cache_options,
    cache_types,
    depths_option,
    measuring_options,
    models_of,
    n_gen_option,
    show_row,
)
from sb_edge.cli.file_options import FileCommand
from sb_edge.cli.options import (
    choice_option,
    integer_option,
    json_option,
    models_argument,
    spike_k_option,
    threads_option,
    tokens_option,
)
from sb_edge.cli.params import PATH, Real
from sb_edge.cli.spike_options import SpikeK
from sb_edge.memory.forecast import EngineSettings
from sb_edge.util.files import require_folder
from sb_edge.util.output import emit, format_bytes
from sb_edge.util.table import Column, Table

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.memory.forecast import FlashChoice


@click.group()
def command() -> None:
    """Check the benchmark, the memory forecast and the operators."""


@command.command(cls=FileCommand)
@models_argument()
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
    """Compare the synthetic context fill of a Transformer with a real prefill."""
    settings = DecodeSettings(depths=depths, n_gen=n_gen, fill="real", **measuring.settings())
    checks = validate_fill(models_of(models, ("none",)), settings, on_row=show_row)

    def render(console: Console) -> None:
        console.print(results_table([row for check in checks for row in (check.real, check.synthetic)]))
        for check in checks:
            console.print(f"{check.real.model} {check.real.label}: synthetic / real = {check.ratio:.3f}")

    emit(checks, json_target, render)


@command.command(cls=FileCommand)
@models_argument(default="default")
@depths_option("4096,32768")
@tokens_option("-p", "--n-prompt", default=600, help="Prompt tokens to evaluate.")
@cache_options
@spike_k_option
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
    """Compare the memory forecast with the memory that a process takes.

    --depths are the contexts. Each case runs in a process of its own, whose resident memory is measured
    before loading the model and after evaluating a prompt.
    """
    settings = [
        EngineSettings(kind_k, kind_v, flash_attn=flash_attn, spikes=spikes)
        for kind_k, kind_v in cache_types(type_k, type_v)
    ]
    chosen = models_of(models, ("none",))
    cases = compare_memory(chosen, depths, settings, n_prompt=n_prompt, n_threads=threads)

    table = Table.of(
        cases,
        {
            "model": lambda case: case.model,
            "context": lambda case: str(case.n_ctx),
            Column("cache", right=False): lambda case: f"{case.settings.type_k}/{case.settings.type_v}",
            "forecast": lambda case: f"{case.expected.total / 2**20:.1f}",
            "measured": lambda case: f"{case.measured.resident / 2**20:.1f}",
            "ratio": lambda case: f"{case.ratio:.3f}",
        },
        title="Growth of a process, MiB",
    )
    emit(cases, json_target, lambda console: console.print(table))


@command.command(cls=FileCommand)
@click.option(
    "--size",
    "size_gib",
    type=Real(1),
    default=2.0,
    show_default=True,
    help="Size of the checkpoint in GiB.",
)
@integer_option("-r", "--repetitions", default=3, help="Number of repetitions.")
@choice_option("--outtype", ["f32", "f16", "bf16", "q8_0", "auto"], "auto", "Type of the GGUF.")
@click.option("--folder", type=PATH, help="Working folder; needs three times the size.")
@json_option
def convert(
    size_gib: float, repetitions: int, outtype: str, folder: Path | None, json_target: str | None
) -> None:
    """Compare conversion with plain copying, and report its memory."""
    results = convert_speed(size_gib, repetitions=repetitions, outtype=outtype, folder=folder)

    def render(console: Console) -> None:
        for result in results:
            console.print(
                f"{format_bytes(result.size_bytes)}: cp {result.copy_seconds:.2f} s, "
                f"convert {result.convert_seconds:.2f} s, {result.ratio:.0%} of the speed of cp, "
                f"peak RSS {format_bytes(result.peak_rss_bytes)}",
                highlight=False,
            )

    emit(results, json_target, render)


@command.command(cls=FileCommand)
@integer_option("-r", "--repetitions", default=10, help="Number of interleaved pairs.")
@click.option("--plot", type=PATH, metavar="FOLDER", help="Write plots to FOLDER.")
@threads_option
@json_option
def sparse(repetitions: int, plot: Path | None, threads: int | None, json_target: str | None) -> None:
    """Measure the sparse product by share of silent channels, without a model."""
    from sb_edge.bench.sparse.curve_plot import save_curves
    from sb_edge.bench.sparse.sparse_tables import curve_table

    require_folder(plot)
    curves = measure_curves(repetitions=repetitions, n_threads=threads)
    if plot is not None:
        save_curves(curves, plot)
    emit(curves, json_target, lambda console: console.print(curve_table(curves)))


@command.command(cls=FileCommand)
@click.argument("distribution", type=click.Choice(["gaussian", "laplacian"]))
@click.option("--spike-k", type=SpikeK(), default=DEFAULT_K, show_default=True, help="k of the coding.")
@integer_option("--rows", default=1024, help="Random rows of 4096 channels.")
@json_option
def spikes(
    distribution: Literal["gaussian", "laplacian"], spike_k: float, rows: int, json_target: str | None
) -> None:
    """Compare the engine's spike counters with closed forms, on random inputs.

    Exits with 1 if a statistic is more than 1 % from its closed form.
    """
    from sb_edge.bench.spikes.stats_tables import synthetic_table

    check = check_synthetic(distribution, spike_k, rows)
    emit(check, json_target, lambda console: console.print(synthetic_table(check)))
    check.require_agreement()
