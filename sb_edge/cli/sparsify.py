"""`sb-edge sparsify`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from sb_edge.cli.options import json_option, share_option, threads_option, tokens_option
from sb_edge.cli.params import PATH
from sb_edge.cli.quantize import check_type
from sb_edge.engine import find_engine
from sb_edge.evaluate.perplexity import read_text
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import COPY, quantization_types, quantize
from sb_edge.quant.sparse.zone_tuning import DEFAULT_MAX_DENSITY
from sb_edge.quant.tuning import DEFAULT_BUDGET, DEFAULT_TOKENS, cut_text
from sb_edge.util.output import emit, format_bytes


@click.command("sparsify")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=PATH)
@click.option(
    "--type", "qtype", metavar="TYPE", default=COPY, show_default=True, help="Quantize to this type as well."
)
@click.option("--text", required=True, type=PATH, help="Calibration text (required).")
@share_option("--budget", DEFAULT_BUDGET, "Allowed rise of perplexity over that of the dense product.")
@tokens_option("--tokens", default=DEFAULT_TOKENS, help="Maximum number of tokens of a text.", least=64)
@click.option(
    "--max-density",
    type=click.FloatRange(0, 1, min_open=True),
    default=DEFAULT_MAX_DENSITY,
    show_default=True,
    help="Share of active channels beyond which a token takes the dense product.",
)
@click.option("--keep-order", is_flag=True, help="Keep the order of FFN neurons, for LoRA adapters.")
@click.option("--imatrix", type=PATH, help="Importance matrix; implies --keep-order.")
@click.option("--allow-requantize", is_flag=True, help="Accept quantized tensors, at a loss.")
@threads_option
@json_option
def command(
    source: str,
    target: Path,
    qtype: str,
    text: Path,
    budget: float,
    tokens: int,
    max_density: float,
    keep_order: bool,
    imatrix: Path | None,
    allow_requantize: bool,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Copy a GGUF with a sparse layout for decoding.

    Columns and dead zones let decoding skip the weights of silent channels.

    IN is a GGUF without spikes, or a built-in model.
    """
    from sb_edge.bench.sparse.sparse_tables import layout_table
    from sb_edge.quant.sparse.layout import quantize_sparse

    engine = find_engine()
    check_type(qtype, quantization_types(engine), "--type")
    path = resolve_gguf(source)
    write = partial(
        quantize,
        target=target,
        qtype=qtype,
        imatrix=imatrix,
        n_threads=threads,
        allow_requantize=allow_requantize,
        engine=engine,
    )
    calibration, held_out = (cut_text(path, *read_text(file), tokens) for file in (text, None))
    layout = quantize_sparse(
        path,
        target,
        lambda floats, finish: write(floats, finish=finish),
        text=calibration,
        held_out=held_out,
        budget=budget,
        max_density=max_density,
        reorder=not keep_order and imatrix is None,
        allow_requantize=allow_requantize,
        n_threads=threads,
    )
    emit(layout, json_target, lambda console: console.print(layout_table(layout)))
    if json_target != "-":
        click.echo(f"{target}: {format_bytes(target.stat().st_size)}")
