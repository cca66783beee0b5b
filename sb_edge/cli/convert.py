"""`sb-edge convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sb_edge.cli.sizes import Size, human

if TYPE_CHECKING:
    from sb_edge.convert.convert import ConversionReport


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--outfile",
    type=click.Path(path_type=Path),
    help="File to write ({ftype} in it becomes the type), or a folder. Default: in the checkpoint's folder, "
    "named by GGUF's convention.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0", "auto"]),
    default="auto",
    show_default=True,
    help="Type of the matrices; norms, biases and gates are always f32. "
    "auto: bf16 for a bf16 checkpoint, else f16.",
)
@click.option("--dry-run", is_flag=True, help="Check and list what would be written, write nothing.")
@click.option(
    "--metadata",
    "metadata_file",
    type=click.Path(path_type=Path),
    help="JSON file of general.* keys that override the model card.",
)
@click.option(
    "--split-max-size",
    type=Size(),
    default=0,
    help="Split into parts of at most this much tensor data. Default: one file.",
)
def command(
    checkpoint: Path,
    outfile: Path | None,
    outtype: str,
    dry_run: bool,
    metadata_file: Path | None,
    split_max_size: int,
) -> None:
    """Convert a SpikingBrain checkpoint to GGUF.

    CHECKPOINT is a folder in the public Hugging Face layout: config.json, safetensors files and, if the
    model has one, its tokenizer. The output appears under its name only when it is complete.
    """
    from sb_edge.convert.convert import convert_checkpoint

    report = convert_checkpoint(
        checkpoint,
        outfile,
        outtype=outtype,
        metadata_file=metadata_file,
        split_max_size=split_max_size,
        dry_run=dry_run,
    )
    if dry_run:
        _show_plan(report)
        return
    for file in report.files:
        click.echo(str(file))
    rate = report.nbytes / 1e6 / report.seconds
    click.echo(
        f"converted {checkpoint} to {report.outtype}: {len(report.tensors)} tensors, "
        f"{human(report.nbytes)}, in {report.seconds:.1f} s, {rate:.0f} MB/s",
        err=True,
    )


def _show_plan(report: ConversionReport) -> None:
    for tensor in report.tensors:
        shape = "x".join(str(size) for size in tensor.shape)
        click.echo(f"{tensor.name:32} {tensor.qtype.name:5} {shape:>14} {tensor.nbytes:>14,}")
    click.echo(f"vocabulary: {report.vocabulary}")
    click.echo(f"{len(report.tensors)} tensors, {human(report.nbytes)}, would be written to:")
    for file in report.files:
        click.echo(f"  {file}")
