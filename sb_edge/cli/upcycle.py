"""`sb-edge upcycle`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.layer_lists import parse_layers
from sb_edge.cli.options import integer_option
from sb_edge.cli.params import PATH
from sb_edge.convert.upcycle import upcycle


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Folder to create.")
@click.option(
    "--experts", type=click.IntRange(1, 4096), default=16, show_default=True, help="Routed experts per layer."
)
@integer_option("--active", default=1, help="Experts active per token.")
@integer_option("--shared", default=1, help="Shared experts per layer.")
@click.option(
    "--dense-layers", help="Layers that keep a dense FFN: 0-2,4 (76B: 0-2,4,6,8,10).  [default: none]"
)
@click.option(
    "--scale-gate",
    is_flag=True,
    help="Scale all three matrices, as the report does (approximate).",
)
@integer_option("-s", "--seed", default=0, help="Random seed.", least=0)
def command(
    checkpoint: Path,
    output: Path,
    experts: int,
    active: int,
    shared: int,
    dense_layers: str | None,
    scale_gate: bool,
    seed: int,
) -> None:
    """Turn a checkpoint's FFNs into mixtures of experts.

    CHECKPOINT is a dense SpikingBrain checkpoint's folder. Every expert starts as a copy of its layer's FFN,
    scaled so that the model computes what it did; training tells them apart. The reference runs the result;
    the engine does not yet.
    """
    report = upcycle(
        checkpoint,
        output,
        experts=experts,
        active=active,
        shared=shared,
        dense_layers=parse_layers(dense_layers, "--dense-layers") if dense_layers else (),
        scale_gate=scale_gate,
        seed=seed,
    )
    click.echo(
        f"{report.folder}: {sum(report.config.moe_layers)} layers with {experts} experts, {active} active "
        f"and {shared} shared, copies scaled by {report.scale:.4f}; "
        f"{report.parameters / 1e6:,.1f}M parameters, {report.active / 1e6:,.1f}M active"
    )
