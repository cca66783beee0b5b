"""`sb-edge convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sb_edge.cli.options import choice_option
from sb_edge.cli.params import PATH, Size
from sb_edge.cli.spike_options import SpikeK, plan_text, projections_option
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.util.output import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sb_edge.convert.convert import ConversionReport


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option(
    "-o",
    "--output",
    "--outfile",
    "outfile",
    type=PATH,
    help="File ({ftype} becomes the type) or folder to write.  [default: in the checkpoint's folder, named "
    "by GGUF's convention]",
)
@choice_option(
    "--outtype",
    ["f32", "f16", "bf16", "q8_0", "auto"],
    "auto",
    "Type of the matrices; norms, biases and low-rank gates are always f32. "
    "auto: q8_0 for a W8ASpike checkpoint, bf16 for a bf16 one, else f16.",
)
@click.option("--dry-run", is_flag=True, help="Check the checkpoint and list the output; write nothing.")
@click.option(
    "--metadata",
    "metadata_file",
    type=PATH,
    help="JSON file of general.* keys that override the model card.",
)
@click.option(
    "--split-max-size",
    type=Size(),
    default=0,
    help="Maximum tensor data per file.  [default: one file]",
)
@click.option(
    "--spike-k",
    type=SpikeK(),
    help="k of every coded input.  [default: 3 for a W8ASpike checkpoint, else no spikes]",
)
@projections_option
def command(
    checkpoint: Path,
    outfile: Path | None,
    outtype: str,
    dry_run: bool,
    metadata_file: Path | None,
    split_max_size: int,
    spike_k: float | None,
    spike_projections: tuple[str, ...] | None,
) -> None:
    """Convert a SpikingBrain checkpoint to GGUF.

    CHECKPOINT is a folder in the public Hugging Face layout: config.json, safetensors files and, if the
    model has one, its tokenizer. The output appears under its name only when it is complete.
    """
    report = convert_checkpoint(
        checkpoint,
        outfile,
        outtype=outtype,
        metadata_file=metadata_file,
        split_max_size=split_max_size,
        dry_run=dry_run,
        spike_k=spike_k,
        spike_projections=spike_projections,
    )
    if dry_run:
        _show_plan(report)
        return
    for file in report.files:
        click.echo(str(file))
    rate = report.nbytes / 1e6 / report.seconds
    click.echo(
        f"converted {checkpoint} to {report.outtype}: {len(report.tensors)} tensors, "
        f"{format_bytes(report.nbytes)}, in {report.seconds:.1f} s, {rate:.0f} MB/s",
        err=True,
    )
    for line in _spike_lines(report):
        click.echo(line, err=True)


def _spike_lines(report: ConversionReport) -> Iterator[str]:
    """What the GGUF says about spikes, and what became of a W8ASpike checkpoint's integer weights."""
    if report.spikes:
        yield f"spikes: {plan_text(report.spikes)}"
    codes = report.codes
    if codes is None:
        return
    if report.outtype == "q8_0":
        blocks = codes.requantized_blocks
        yield (
            f"integer weights: {codes.exact_codes:,} of {codes.codes:,} codes exact, {blocks:,} blocks "
            f"requantized; scales rounded to half precision, by {codes.scale_error:.1e} at most"
        )
    else:
        rounded = "exactly as released" if report.outtype == "f32" else f"rounded to {report.outtype}"
        yield f"integer weights: {codes.codes:,} codes times their scales, {rounded}"
    if codes.beyond_int8:
        most, count = max(codes.beyond_int8.items(), key=lambda item: item[1])
        yield (
            f"codes beyond INT8: {sum(codes.beyond_int8.values()):,} in {len(codes.beyond_int8)} tensors, "
            f"most in {most} ({count:,})"
        )
    yield "down_proj: from its unrounded weight, which is what the release multiplies by"


def _show_plan(report: ConversionReport) -> None:
    for tensor in report.tensors:
        shape = "x".join(str(size) for size in tensor.shape)
        click.echo(f"{tensor.name:32} {tensor.qtype.name:5} {shape:>14} {tensor.nbytes:>14,}")
    click.echo(f"vocabulary: {report.vocabulary}")
    for line in _spike_lines(report):
        click.echo(line)
    click.echo(f"{len(report.tensors)} tensors, {format_bytes(report.nbytes)}, would be written to:")
    for file in report.files:
        click.echo(f"  {file}")
