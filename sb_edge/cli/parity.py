"""Compare the engine with the reference or with recorded logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sb_edge.cli.file_options import FileCommand
from sb_edge.cli.options import Command, choice_option, json_option, model_argument, tokens_option
from sb_edge.cli.params import PATH, Real, TokenCounts
from sb_edge.evaluate.parity import agreement as parity
from sb_edge.models.registry import resolve_gguf
from sb_edge.util.output import emit
from sb_edge.util.table import Table
from sb_edge.util.tolerances import ENGINE_BY_KV_TYPE

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.evaluate.parity.engine_side import KvType
    from sb_edge.evaluate.parity.parity_report import ParityReport
    from sb_edge.evaluate.parity.spike_counts import SpikeParity


def kv_type_option(side: str, what: str) -> Callable[[Command], Command]:
    """`--cache-type-k` or `--cache-type-v`, of the types that have a tolerance."""
    return click.option(
        f"-ct{side}",
        f"--cache-type-{side}",
        f"type_{side}",
        type=click.Choice(list(ENGINE_BY_KV_TYPE)),
        help=f"Type of the engine's cached {what}.  [default: f16; f32 for a GGUF that spikes]",
    )


@click.command(cls=FileCommand)
@model_argument("gguf", following="checkpoint")
@click.argument("checkpoint", required=False, type=PATH)
@click.option(
    "--golden",
    type=PATH,
    help="Recorded logits, an .npz, instead of CHECKPOINT; with CHECKPOINT, the prompt alone.",
)
@click.option(
    "--pieces",
    type=TokenCounts(1),
    default=(),
    help="Evaluate the prompt again in chunks of these numbers of tokens: 1,7,33.",
)
@kv_type_option("k", "keys")
@kv_type_option("v", "values")
@click.option("--per-layer", is_flag=True, help="Compare every layer and name the first that diverges.")
@tokens_option("--tokens", default=None, help="Length of the prompt (random tokens: 128).")
@click.option("-p", "--prompt", "text", help="Prompt.  [default: random tokens from a fixed seed]")
@tokens_option("--greedy", default=None, help="Number of greedy tokens to compare as well.")
@click.option("--tolerance", type=Real(min=0), help="Ceiling on the NMSE instead of the KV type's own.")
@click.option(
    "--counts-identical",
    type=Real(0, 1),
    metavar="SHARE",
    help="Share of identical spike counts to ask for, instead of the KV type's own and the rest off by one.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device of the reference: auto, cpu, cuda[:N], metax[:N].",
)
@choice_option(
    "--dtype", ["float32", "float64", "bfloat16"], "float32", "The reference's weights and activations."
)
@json_option
def command(
    gguf: str,
    checkpoint: Path | None,
    golden: Path | None,
    pieces: tuple[int, ...],
    type_k: KvType | None,
    type_v: KvType | None,
    per_layer: bool,
    tokens: int | None,
    text: str | None,
    greedy: int | None,
    tolerance: float | None,
    counts_identical: float | None,
    device: str,
    dtype: Literal["float32", "float64", "bfloat16"],
    json_target: str | None,
) -> None:
    """Compare the engine with the reference or with recorded logits.

    GGUF runs in the engine; the reference is the PyTorch model on CHECKPOINT, or the logits in --golden,
    which need no PyTorch. Prints NMSE, KL divergence, top-1 agreement and the worst position; for a GGUF that
    spikes, against a CHECKPOINT, also how many spike counts are identical. Exits with 1 when the NMSE is over
    the tolerance or too few counts are identical.
    """
    if checkpoint is None and (per_layer or greedy or text is not None or counts_identical is not None):
        raise click.UsageError("--per-layer, --greedy, --prompt and --counts-identical need a CHECKPOINT.")
    if golden and text is not None:
        raise click.UsageError("The prompt is either --prompt or that of --golden.")

    if checkpoint:
        report = parity.against_checkpoint(
            resolve_gguf(gguf),
            checkpoint,
            text=text,
            recording=golden,
            n_tokens=tokens,
            pieces=pieces,
            type_k=type_k,
            type_v=type_v,
            per_layer=per_layer,
            n_greedy=greedy or 0,
            tolerance=tolerance,
            counts_identical=counts_identical,
            device=device,
            dtype=dtype,
        )
    elif golden:
        report = parity.against_recording(
            resolve_gguf(gguf),
            golden,
            pieces=pieces,
            type_k=type_k,
            type_v=type_v,
            n_tokens=tokens,
            tolerance=tolerance,
        )
    else:
        raise click.UsageError("Name a CHECKPOINT or --golden.")
    emit(report, json_target, lambda console: _render(report, console))
    report.require_passed()


def _render(report: ParityReport, console: Console) -> None:
    console.print(f"{report.gguf} against {report.reference}", highlight=False)
    table = Table("fed at a time", "NMSE", "KL (nats)", "top-1", "worst position")
    for run in report.runs:
        found = run.agreement
        table.add(
            "whole prompt" if run.piece == report.tokens else str(run.piece),
            f"{found.nmse:.2e}",
            f"{found.kl:.2e}",
            f"{found.top1:.1%}",
            f"{found.worst_position} ({found.worst_nmse:.1e})",
        )
    console.print(table)
    if report.per_layer:
        _render_layers(report, console)
    if report.spikes:
        _render_spikes(report.spikes, console)
    if report.greedy:
        same = "identical" if report.same_text else f"differs from token {report.greedy.first_difference} on"
        console.print(f"greedy text, {len(report.greedy.engine)} tokens: {same}")
        console.print(f"  reference {report.greedy.reference}")
        console.print(f"  engine    {report.greedy.engine}")
    verdict = "passed" if report.passed else "FAILED"
    console.print(
        f"{verdict}: NMSE {report.worst.agreement.nmse:.2e}, tolerance {report.tolerance:.0e} "
        f"({'/'.join(dict.fromkeys(report.kv_types))} KV, {report.tokens} tokens)"
    )


def _render_layers(report: ParityReport, console: Console) -> None:
    table = Table("tensor", "NMSE")
    for name, value in report.worst.layers.items():
        table.add(name, f"{value:.2e}", red=value > report.tolerance)
    console.print(table)
    console.print(f"first layer that diverges: {report.first_divergent_layer or 'none'}")


def _render_spikes(spikes: SpikeParity, console: Console) -> None:
    table = Table("spike counts", "compared", "differ", "by at most", "worst layer", "differ end to end")
    for name in dict.fromkeys(found.projection for found in spikes.same_inputs.projections):
        found, whole = spikes.same_inputs.of(name), spikes.end_to_end.of(name)
        worst = "-" if found.worst is None else found.worst.layer
        figures = (found.total, found.differing, found.largest_difference, worst, whole.differing)
        table.add(name, *map(str, figures))
    console.print(table)
    same, free = spikes.same_inputs, spikes.end_to_end
    console.print(
        f"spike counts from the same inputs: {same.identical:.4%} identical, {same.differing} of "
        f"{same.total} differ, by at most {same.largest_difference}; "
        f"end to end: {free.identical:.4%} identical"
    )
