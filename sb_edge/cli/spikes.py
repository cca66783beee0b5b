"""`sb-edge spikes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from sb_edge.arch.coding import Coding
from sb_edge.arch.model_check import read_model
from sb_edge.bench.spikes.sweep import sweep_k
from sb_edge.bench.spikes.tuning_table import tuning_table
from sb_edge.cli.file_options import FileCommand, OutputFile
from sb_edge.cli.options import (
    choice_option,
    integer_option,
    json_option,
    model_argument,
    share_option,
    text_option,
    threads_option,
    tokens_option,
)
from sb_edge.cli.params import PATH, CommaSeparated
from sb_edge.cli.spike_options import SpikeK, projections_option
from sb_edge.evaluate.perplexity import read_text
from sb_edge.evaluate.spike_stats import engine_k, measure
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import COPY, quantize
from sb_edge.quant.spikes.k_tuning import tune_copy
from sb_edge.quant.tuning import DEFAULT_BUDGET, DEFAULT_TOKENS, cut_text
from sb_edge.runtime.session import Model
from sb_edge.util.files import require_folder
from sb_edge.util.output import emit, format_bytes
from sb_edge.util.progress import note

if TYPE_CHECKING:
    from sb_edge.bench.spikes.sweep import SweepPoint

spike_k_option = click.option(
    "--spike-k",
    type=SpikeK(),
    help="k of every coded input.  [default: as the file says; 3 if it has no spikes]",
)


@click.group()
def command() -> None:
    """Set, tune, count, draw and sweep a model's spikes."""


@command.command("set", cls=FileCommand)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=OutputFile())
@click.argument("k", type=SpikeK(zero=True))
@projections_option
def set_k(source: str, target: Path, k: float, spike_projections: tuple[str, ...] | None) -> None:
    """Copy a GGUF with spikes of this K at its projections; 0 removes them.

    Weights are not changed, and OUT is another file than IN.
    """
    quantize(resolve_gguf(source), target, COPY, spike_k=k, spike_projections=spike_projections)
    click.echo(f"{target}: {format_bytes(target.stat().st_size)}")


@command.command(cls=FileCommand)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=OutputFile())
@projections_option
@click.option("--text", required=True, type=PATH, help="Tuning text (required).")
@share_option("--budget", DEFAULT_BUDGET, "Allowed rise of perplexity over that without spikes.")
@tokens_option("--tokens", default=DEFAULT_TOKENS, help="Maximum number of tokens of a text.", least=64)
@click.option(
    "--eval-text",
    type=PATH,
    help="Text to report on, not tuned on.  [default: a built-in English text]",
)
@click.option("--curve", type=PATH, metavar="FOLDER", help="Write measurements and plots to FOLDER.")
@threads_option
def tune(
    source: str,
    target: Path,
    spike_projections: tuple[str, ...] | None,
    text: Path,
    budget: float,
    tokens: int,
    eval_text: Path | None,
    curve: Path | None,
    threads: int | None,
) -> None:
    """Copy a GGUF with a tuned k for each coded input: the fewest spikes within a perplexity budget.

    If k = 64 still exceeds the budget, nothing is written.
    """
    from sb_edge.bench.spikes.tuning_plot import save_tuning

    require_folder(curve)
    path = resolve_gguf(source)
    texts = [cut_text(path, *read_text(file), tokens) for file in (text, eval_text)]
    tuning = tune_copy(
        path, target, texts[0], texts[1], budget, projections=spike_projections, n_threads=threads
    )
    if curve is not None:
        save_tuning(tuning, curve)
    Console().print(tuning_table(tuning))
    click.echo(f"{target}: {format_bytes(target.stat().st_size)}")


@command.command(cls=FileCommand)
@model_argument()
@text_option
@spike_k_option
@tokens_option("--tokens", default=1024, help="Maximum number of tokens to evaluate.")
@click.option("--layers", is_flag=True, help="Show every layer.")
@click.option("--plot", type=PATH, metavar="FOLDER", help="Write plots (PNG, SVG) to FOLDER.")
@threads_option
@json_option
def stats(
    model: str,
    text: Path | None,
    spike_k: float | None,
    tokens: int,
    layers: bool,
    plot: Path | None,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Count a model's spikes on a text, and estimate their energy.

    Counts come from the engine, at every coded input.
    """
    from sb_edge.bench.spikes.stats_plots import save_report_plots
    from sb_edge.bench.spikes.stats_tables import stats_table

    require_folder(plot)
    content, name = read_text(text)
    with _load(model, spike_k) as loaded:
        report = measure(loaded, content, name=name, max_tokens=tokens, n_threads=threads)
    if plot is not None:
        save_report_plots(report, plot)
    emit(report, json_target, lambda console: console.print(stats_table(report, layers=layers)))


@command.command(cls=FileCommand)
@model_argument()
@click.option(
    "--k",
    "ks",
    type=CommaSeparated(SpikeK(), "ks"),
    default="2,2.5,3,3.5,4",
    show_default=True,
    help="Values of k.",
)
@text_option
@tokens_option("--tokens", default=1024, help="Maximum number of tokens to evaluate.", least=2)
@click.option("--plot", type=PATH, metavar="FOLDER", help="Write a plot (PNG, SVG) to FOLDER.")
@threads_option
@json_option
def sweep(
    model: str,
    ks: tuple[float, ...],
    text: Path | None,
    tokens: int,
    plot: Path | None,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Measure perplexity and spikes over k, beside the report's table.

    The model is evaluated without spikes, with those of the file, and with each k at every input. A large
    k, such as 1000, shows the limit of lossless coding.
    """
    from sb_edge.bench.spikes.stats_plots import save_sweep_plot
    from sb_edge.bench.spikes.stats_tables import sweep_table

    require_folder(plot)
    content, name = read_text(text)
    result = sweep_k(
        resolve_gguf(model),
        content,
        name=name,
        ks=ks,
        max_tokens=tokens,
        n_threads=threads,
        on_point=_show_point,
    )
    if plot is not None:
        save_sweep_plot(result, plot)
    emit(result, json_target, lambda console: console.print(sweep_table(result)))


@command.command(cls=FileCommand)
@model_argument()
@click.option("-p", "--prompt", required=True, help="Prompt to draw.")
@integer_option("--layer", default=0, help="Layer, from 0.", least=0)
@click.option(
    "--projection",
    default="attn_q",
    show_default=True,
    help="Projection: attn_q, ffn_gate, ffn_down ...",
)
@choice_option("--coding", [*(each.value for each in Coding), "all"], "all", "Spike coding.")
@click.option("--magnitudes", is_flag=True, help="Draw |s| for codings without signs.")
@integer_option("--channels", default=64, help="Show the N most active channels.")
@tokens_option("--tokens", default=12, help="Number of prompt tokens to draw.")
@spike_k_option
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    help="Picture to write: .png, .svg or .pdf.  [default: raster.png and raster.svg]",
)
@threads_option
def raster(
    model: str,
    prompt: str,
    layer: int,
    projection: str,
    coding: str,
    magnitudes: bool,
    channels: int,
    tokens: int,
    spike_k: float | None,
    output: Path | None,
    threads: int | None,
) -> None:
    """Draw the spikes of an input's channels over time.

    Time runs through the virtual steps of each token; the first 32 of a token are drawn. Binary and plain
    bitwise coding have no signs: `all` draws them of |s|.
    """
    from sb_edge.bench.spikes.raster import make_raster, record_input, save_rasters
    from sb_edge.util.plot import require_image_name

    files = [output] if output else [Path("raster.png"), Path("raster.svg")]
    for file in files:
        require_image_name(file)
    with _load(model, spike_k) as loaded:
        recorded = record_input(loaded, prompt, layer, projection, max_tokens=tokens, n_threads=threads)
    codings = list(Coding) if coding == "all" else [Coding(coding)]
    rasters = [
        make_raster(recorded.counts, each, n_channels=channels, magnitudes=magnitudes or coding == "all")
        for each in codings
    ]
    save_rasters(recorded, rasters, files)
    for file in files:
        click.echo(f"wrote {file}")


def _load(name: str, spike_k: float | None) -> Model:
    """A model with its spikes on; prints a note where the k is a default."""
    path = resolve_gguf(name)
    header = read_model(path)
    k = engine_k(header, spike_k)
    if k is not None and spike_k is None:
        note(f"{path.name} stores no spikes: coding every projection with k = {k:g}")
    return Model(path, header=header, spikes=k)


def _show_point(point: SweepPoint) -> None:
    from sb_edge.bench.spikes.stats_tables import k_label

    note(f"k = {k_label(point)}: perplexity {point.perplexity:.3f}")
