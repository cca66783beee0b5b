"""`sb-edge spikes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sb_edge.arch.coding import Coding
from sb_edge.arch.spike_plan import DEFAULT_K
from sb_edge.bench.spikes.sweep import sweep_k
from sb_edge.bench.spikes.theory import check_synthetic
from sb_edge.cli.lists import CommaSeparated
from sb_edge.cli.options import integer_option, json_option, text_option, threads_option
from sb_edge.cli.spike_options import SpikeK
from sb_edge.evaluate.perplexity import read_text
from sb_edge.evaluate.spike_stats import engine_k, measure
from sb_edge.gguf.reader import read_header
from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.session import Model
from sb_edge.util.output import emit
from sb_edge.util.progress import stderr

if TYPE_CHECKING:
    from sb_edge.bench.spikes.sweep import SweepPoint
    from sb_edge.runtime.session import Model

CODINGS = ["binary", "ternary", "bitwise", "bitwise-bidirectional", "bitwise-twos-complement"]


class Ks(CommaSeparated):
    """Values of k: `2,2.5,3`."""

    name = "ks"

    def item(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A k."""
        return float(SpikeK().convert(text, param, ctx))


spike_k_option = click.option(
    "--spike-k",
    type=SpikeK(),
    help="This k for every input.  [default: as the file says; 3 if it has no spikes]",
)


@click.group()
def command() -> None:
    """Count, draw and sweep a model's spikes."""


@command.command()
@click.argument("model", required=False)
@text_option
@click.option(
    "--synthetic",
    type=click.Choice(["gaussian", "laplacian"]),
    help="Random inputs instead of MODEL: the engine's counters against the closed form.",
)
@spike_k_option
@integer_option(
    "--tokens", default=1024, help="At most so many tokens of the text, in one context; rows of --synthetic."
)
@click.option("--layers", is_flag=True, help="Show every layer.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FOLDER", help="Write plots, PNG and SVG, to FOLDER."
)
@threads_option
@json_option
def stats(
    model: str | None,
    text: Path | None,
    synthetic: Literal["gaussian", "laplacian"] | None,
    spike_k: float | None,
    tokens: int,
    layers: bool,
    plot: Path | None,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Spike counts of a model on a text, and what they would take in energy.

    MODEL is a GGUF or `default`. Counts come from the engine, at every input that it codes. With --synthetic
    the engine codes random rows of 4096 channels instead; exits with 1 if a statistic is more than 1 % from
    its closed form.
    """
    if (model is None) == (synthetic is None):
        raise click.UsageError("Name either a MODEL or --synthetic.")
    if synthetic is not None:
        if text or plot or layers:
            raise click.UsageError("--text, --plot and --layers need a MODEL, not --synthetic.")
        _show_synthetic(synthetic, spike_k, tokens, json_target)
        return
    from sb_edge.bench.spikes.stats_plots import save_report_plots
    from sb_edge.bench.spikes.stats_tables import stats_table
    from sb_edge.util.plot import require_plot_folder

    require_plot_folder(plot)
    content, name = read_text(text)
    with _load(str(model), spike_k) as loaded:
        report = measure(loaded, content, name=name, max_tokens=tokens, n_threads=threads)
    if plot is not None:
        save_report_plots(report, plot)
    emit(report, json_target, lambda console: console.print(stats_table(report, layers=layers)))


@command.command()
@click.argument("model")
@click.option("--k", "ks", type=Ks(), default="2,2.5,3,3.5,4", show_default=True, help="Values of k.")
@text_option
@integer_option("--tokens", default=1024, help="At most so many tokens of the text, in one context.", least=2)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FOLDER", help="Write a plot, PNG and SVG, to FOLDER."
)
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
    """Perplexity and spikes over k, beside the report's table.

    MODEL is a GGUF or `default`. It is evaluated without spikes, as the file has them if it does, and with
    each k at every input. A large k, such as 1000, shows the limit of coding without loss.
    """
    from sb_edge.bench.spikes.stats_plots import save_sweep_plot
    from sb_edge.bench.spikes.stats_tables import sweep_table
    from sb_edge.util.plot import require_plot_folder

    require_plot_folder(plot)
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


@command.command()
@click.argument("model")
@click.option("-p", "--prompt", required=True, help="The text whose tokens are drawn.")
@integer_option("--layer", default=0, help="Layer, from 0.", least=0)
@click.option(
    "--projection", default="attn_q", show_default=True, help="Whose input: attn_q, ffn_gate, ffn_down ..."
)
@click.option(
    "--coding", type=click.Choice([*CODINGS, "all"]), default="all", show_default=True, help="Spike coding."
)
@click.option("--magnitudes", is_flag=True, help="Draw |s| where the coding has no signs, as `all` does.")
@integer_option("--channels", default=64, help="The most active so many.")
@integer_option("--tokens", default=12, help="The first so many of the prompt.")
@spike_k_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A .png, .svg or .pdf file.  [default: raster.png and raster.svg]",
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
    """Draw which channels of an input spike when.

    MODEL is a GGUF or `default`. Time runs through the virtual steps of each token in turn, of which the
    first 32 are drawn. Counts are signed, binary and plain bitwise coding are not: `all` draws these of |s|.
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
    """A model with its spikes on; says so where the k is a guess."""
    path = resolve_gguf(name)
    header = read_header(path)
    k = engine_k(header, spike_k)
    if k is not None and spike_k is None:
        stderr.print(
            f"{path.name} stores no spikes: coding every projection with k = {k:g}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return Model(path, header=header, spikes=k)


def _show_synthetic(
    distribution: Literal["gaussian", "laplacian"], spike_k: float | None, rows: int, json_target: str | None
) -> None:
    from sb_edge.bench.spikes.stats_tables import synthetic_table

    check = check_synthetic(distribution, DEFAULT_K if spike_k is None else spike_k, rows)
    emit(check, json_target, lambda console: console.print(synthetic_table(check)))
    check.require_agreement()


def _show_point(point: SweepPoint) -> None:
    from sb_edge.bench.spikes.stats_tables import k_label

    stderr.print(f"k = {k_label(point)}: perplexity {point.perplexity:.3f}", highlight=False, markup=False)
