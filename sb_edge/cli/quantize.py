"""`sb-edge quantize`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from sb_edge.bench.spikes.tuning_table import tuning_table
from sb_edge.cli.spike_options import AUTO, SpikeK, projections_option
from sb_edge.engine import find_engine
from sb_edge.evaluate.perplexity import read_text
from sb_edge.gguf.reader import read_header
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantization_types, quantize, tensor_types
from sb_edge.quant.spikes.k_tuning import DEFAULT_BUDGET, start_k, tune_file
from sb_edge.quant.tuning_text import DEFAULT_TOKENS, cut_text
from sb_edge.util.output import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sb_edge.quant.spikes.k_tuning import Tuning


class PerplexityBudget(click.ParamType):
    """A share, such as 0.02: positive and finite."""

    name = "share"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A float; fails as click's own types do."""
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if 0 < share < math.inf:
            return share
        return self.fail(f"{value!r} is not a positive number; 0.02 is 2 %", param, ctx)


def _check_type(value: str | None, known: Iterable[str], parameter: str) -> None:
    names = list(known)
    if value is not None and value.upper() not in {name.upper() for name in names}:
        raise click.BadParameter(
            f"unknown type {value!r}; choose from: {', '.join(names)}", param_hint=parameter
        )


@click.command("quantize")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("qtype", metavar="TYPE")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix made by llama-imatrix.")
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads; by default one for each CPU.")
@click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is.")
@click.option("--pure", is_flag=True, help="Every tensor in the one type, no mixture.")
@click.option(
    "--allow-requantize", is_flag=True, help="Accept tensors that are quantized already, at a loss."
)
@click.option("--output-tensor-type", metavar="TYPE", help="A ggml type for output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="A ggml type for token_embd.weight.")
@click.option(
    "--spike-k",
    type=SpikeK(zero=True, auto=True),
    help="Code the inputs of projections as spikes, with this k; 0: not; auto: each with its own, tuned. "
    "Default: as IN does.",
)
@projections_option
@click.option(
    "--budget",
    type=PerplexityBudget(),
    help="auto: perplexity may rise by this share over that without spikes.  [default: 0.02]",
)
@click.option("--text", type=click.Path(path_type=Path), help="auto: the UTF-8 text to tune on; needed.")
@click.option(
    "--tokens", type=click.IntRange(64), help="auto: at most so many tokens of a text.  [default: 2048]"
)
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    help="auto: a text to report figures on, not tuned on.  [default: a built-in English text]",
)
@click.option(
    "--curve",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="auto: write what was measured to FOLDER, JSON, PNG and SVG.",
)
@click.option(
    "--sparse-layout",
    is_flag=True,
    help="Add columns and dead zones, by which decoding skips the weights of silent channels.",
)
@click.option(
    "--sparse-text",
    type=click.Path(path_type=Path),
    help="Sparse layout: the UTF-8 text that decides on dead zones; needed.",
)
@click.option(
    "--sparse-budget",
    type=PerplexityBudget(),
    help="Sparse layout: perplexity may rise by this share over the dense product's.  [default: 0.02]",
)
@click.option(
    "--sparse-tokens",
    type=click.IntRange(64),
    help="Sparse layout: at most so many tokens of a text.  [default: 2048]",
)
@click.option(
    "--max-density",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sparse layout: a token with a larger share of active channels takes the dense product.  "
    "[default: 0.18]",
)
@click.option(
    "--keep-order", is_flag=True, help="Sparse layout: leave the neurons where they are, for adapters."
)
@click.option(
    "--json",
    "json_target",
    metavar="FILE",
    help="Sparse layout: write what was measured to FILE; - as usual.",
)
def command(
    source: str,
    target: Path,
    qtype: str,
    imatrix: Path | None,
    threads: int | None,
    leave_output_tensor: bool,
    pure: bool,
    allow_requantize: bool,
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    spike_k: float | str | None,
    spike_projections: tuple[str, ...] | None,
    budget: float | None,
    text: Path | None,
    tokens: int | None,
    eval_text: Path | None,
    curve: Path | None,
    sparse_layout: bool,
    sparse_text: Path | None,
    sparse_budget: float | None,
    sparse_tokens: int | None,
    max_density: float | None,
    keep_order: bool,
    json_target: str | None,
) -> None:
    """Quantize a GGUF with llama-quantize's types.

    IN is a GGUF or the name of a built-in model. TYPE is one of llama-quantize's (Q4_0, Q4_K_M, Q8_0, ...);
    an unknown one lists them all; COPY leaves the weights as they are. An importance matrix for --imatrix is
    made by llama-imatrix, which is in bin/ of the folder that `sb-edge engine path` prints.
    """
    engine = find_engine()
    _check_type(qtype, quantization_types(engine), "TYPE")
    for value, option in (
        (output_tensor_type, "--output-tensor-type"),
        (token_embedding_type, "--token-embedding-type"),
    ):
        if value is not None:
            _check_type(value, tensor_types(), option)
    auto_options = (budget, text, tokens, eval_text, curve)
    if spike_k != AUTO and any(option is not None for option in auto_options):
        raise click.UsageError(
            "--budget, --text, --tokens, --eval-text and --curve belong to --spike-k auto."
        )
    sparse_options = (sparse_text, sparse_budget, sparse_tokens, max_density, json_target)
    if not sparse_layout and (keep_order or any(option is not None for option in sparse_options)):
        raise click.UsageError(
            "--sparse-text, --sparse-budget, --sparse-tokens, --max-density, --keep-order and --json belong "
            "to --sparse-layout."
        )
    if sparse_layout and spike_k is not None:
        raise click.UsageError("--sparse-layout is for inputs that are not coded: leave out --spike-k.")
    path = resolve_gguf(source)
    write = partial(
        quantize,
        target=target,
        qtype=qtype,
        imatrix=imatrix,
        n_threads=threads,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        allow_requantize=allow_requantize,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        spike_projections=spike_projections,
        engine=engine,
    )
    if sparse_layout:
        if sparse_text is None:
            raise click.UsageError("--sparse-layout needs a --sparse-text that decides on dead zones.")
        settings = _SparseSettings(
            sparse_text,
            sparse_budget,
            sparse_tokens,
            max_density,
            reorder=not keep_order and imatrix is None,
            allow_requantize=allow_requantize,
            threads=threads,
        )
        _write_sparse(write, path, target, settings, json_target)
    elif isinstance(spike_k, str):
        _write_tuned(partial(write, path), path, text, eval_text, budget, tokens, curve, threads)
    else:
        write(path, spike_k=spike_k)
    if json_target == "-":
        return
    click.echo(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")


def _write_tuned(
    write: Callable[..., None],
    source: Path,
    text: Path | None,
    eval_text: Path | None,
    budget: float | None,
    max_tokens: int | None,
    curve: Path | None,
    threads: int | None,
) -> None:
    """Write the file through `write`, with each input's own k, and show what that gains."""
    if text is None:
        raise click.UsageError("--spike-k auto needs a --text to tune on.")

    from sb_edge.bench.spikes.tuning_plot import save_tuning
    from sb_edge.util.plot import require_plot_folder

    require_plot_folder(curve)
    tuning_text, held_out = (
        cut_text(source, *read_text(file), max_tokens or DEFAULT_TOKENS) for file in (text, eval_text)
    )
    found: list[Tuning] = []

    def finish(written: Path) -> None:
        found.append(tune_file(written, tuning_text, held_out, budget or DEFAULT_BUDGET, n_threads=threads))

    write(spike_k=start_k(read_header(source)), finish=finish)
    if curve is not None:
        save_tuning(found[0], curve)
    Console().print(tuning_table(found[0]))


@dataclass(frozen=True)
class _SparseSettings:
    """The options of `--sparse-layout`."""

    text: Path
    budget: float | None
    max_tokens: int | None
    max_density: float | None
    reorder: bool
    allow_requantize: bool
    threads: int | None


def _write_sparse(
    write: Callable[..., None],
    source: Path,
    target: Path,
    settings: _SparseSettings,
    json_target: str | None,
) -> None:
    """Write the file through `write`, with a sparse layout, and show what was chosen."""
    from sb_edge.bench.sparse.sparse_tables import layout_table
    from sb_edge.quant.sparse.layout import quantize_sparse
    from sb_edge.quant.sparse.zone_tuning import DEFAULT_BUDGET, DEFAULT_MAX_DENSITY

    max_tokens = settings.max_tokens or DEFAULT_TOKENS
    text, held_out = (cut_text(source, *read_text(file), max_tokens) for file in (settings.text, None))
    layout = quantize_sparse(
        source,
        target,
        lambda floats, finish: write(floats, finish=finish),
        text=text,
        held_out=held_out,
        budget=settings.budget or DEFAULT_BUDGET,
        max_density=settings.max_density or DEFAULT_MAX_DENSITY,
        reorder=settings.reorder,
        allow_requantize=settings.allow_requantize,
        n_threads=settings.threads,
    )
    emit(layout, json_target, lambda console: console.print(layout_table(layout)))
