"""`sb-edge quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sb_edge.cli.spike_options import AUTO, SpikeK, projections_option

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    help="Code the inputs of projections as spikes, with this k; 0: not. Default: as IN does.",
)
@projections_option
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
) -> None:
    """Quantize a GGUF with llama-quantize's types.

    IN is a GGUF or the name of a built-in model. TYPE is one of llama-quantize's (Q4_0, Q4_K_M, Q8_0, ...);
    an unknown one lists them all. An importance matrix for --imatrix is made by llama-imatrix, which is in
    bin/ of the folder that `sb-edge engine path` prints.
    """
    from sb_edge.engine import find_engine
    from sb_edge.models import resolve_gguf
    from sb_edge.quant.quantize import quantization_types, quantize, tensor_types

    engine = find_engine()
    _check_type(qtype, quantization_types(engine), "TYPE")
    for value, option in (
        (output_tensor_type, "--output-tensor-type"),
        (token_embedding_type, "--token-embedding-type"),
    ):
        if value is not None:
            _check_type(value, tensor_types(), option)
    if isinstance(spike_k, str):
        raise click.BadParameter(f"{AUTO!r} is not available yet", param_hint="--spike-k")
    path = resolve_gguf(source)
    quantize(
        path,
        target,
        qtype,
        imatrix=imatrix,
        n_threads=threads,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        allow_requantize=allow_requantize,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        spike_k=spike_k,
        spike_projections=spike_projections,
        engine=engine,
    )
    click.echo(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")
