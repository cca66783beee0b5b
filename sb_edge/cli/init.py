"""`sb-edge init`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sb_edge.cli.options import choice_option
from sb_edge.cli.params import PATH, Size
from sb_edge.convert.initialise import init_checkpoint
from sb_edge.util.output import format_bytes


@click.command()
@click.option(
    "--preset",
    type=click.Choice(["7b", "1b", "tiny"]),
    required=True,
    help="7b: the published shape; 1b: Llama-3.2-1B's shape with the 7B's attention; tiny: for tests.",
)
@click.option("-o", "--output", type=PATH, required=True, help="Folder to create.")
@click.option(
    "-s", "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Random seed."
)
@choice_option("--dtype", ["bf16", "f16", "f32"], "bf16", "Type of every tensor.")
@click.option(
    "--max-shard-size",
    type=Size(),
    default="5G",
    show_default=True,
    help="Maximum size of one safetensors file.",
)
def command(preset: str, output: Path, seed: int, dtype: str, max_shard_size: int) -> None:
    """Make a random-weight checkpoint in the public layout.

    It has no tokenizer and says nothing sensible: it is for testing and for measuring speed.
    """
    start = time.perf_counter()
    nbytes = init_checkpoint(preset, output, seed=seed, dtype=dtype, max_shard_bytes=max_shard_size)
    seconds = time.perf_counter() - start
    click.echo(str(output))
    click.echo(f"initialised {preset}: {format_bytes(nbytes)} of {dtype}, in {seconds:.1f} s", err=True)
