"""`sb-edge quantize`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from sb_edge.cli.params import PATH
from sb_edge.engine import find_engine
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantization_types, quantize, tensor_types
from sb_edge.util.output import format_bytes


def check_type(value: str | None, known: Iterable[str], parameter: str) -> None:
    """Refuse an unknown type, listing the known ones."""
    names = list(known)
    if value is not None and value.upper() not in {name.upper() for name in names}:
        raise click.BadParameter(
            f"unknown type {value!r}; choose from: {', '.join(names)}", param_hint=parameter
        )


@click.command("quantize")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=PATH)
@click.argument("qtype", metavar="TYPE")
@click.option("--imatrix", type=PATH, help="Importance matrix made by llama-imatrix.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Number of threads.  [default: all CPUs]")
@click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is.")
@click.option("--pure", is_flag=True, help="Use one type for every tensor, no mixture.")
@click.option("--allow-requantize", is_flag=True, help="Accept quantized tensors, at a loss.")
@click.option("--output-tensor-type", metavar="TYPE", help="ggml type of output.weight.")
@click.option("--token-embedding-type", metavar="TYPE", help="ggml type of token_embd.weight.")
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
) -> None:
    """Quantize a GGUF with llama-quantize.

    IN is a GGUF or a built-in model. TYPE is one of llama-quantize's (Q4_0, Q4_K_M, Q8_0, ...); an unknown
    one lists them all; COPY leaves the weights as they are. `sb-edge run llama-imatrix` makes importance
    matrices. Spikes are kept; `sb-edge spikes set` changes them.
    """
    engine = find_engine()
    check_type(qtype, quantization_types(engine), "TYPE")
    check_type(output_tensor_type, tensor_types(), "--output-tensor-type")
    check_type(token_embedding_type, tensor_types(), "--token-embedding-type")
    quantize(
        resolve_gguf(source),
        target,
        qtype,
        imatrix=imatrix,
        n_threads=threads,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        allow_requantize=allow_requantize,
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        engine=engine,
    )
    click.echo(f"{target}: {format_bytes(target.stat().st_size)}")
