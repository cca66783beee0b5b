"""`sb-edge transplant`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.layer_lists import GLA_LAYERS_HELP, gla_layers_of
from sb_edge.cli.options import integer_option, tokens_option
from sb_edge.cli.params import PATH, Real
from sb_edge.convert.transplant import transplant
from sb_edge.models.registry import resolve_base


@click.command()
@click.argument("base", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Folder to create.")
@click.option("--gla-layers", help=GLA_LAYERS_HELP)
@tokens_option("--window", default=4096, help="Window of the other layers in tokens.")
@click.option("--dtype", type=click.Choice(["bf16", "f16", "f32"]), default="bf16", show_default=True)
@integer_option("-s", "--seed", default=0, help="Random seed.", least=0)
@click.option(
    "--norm-scale",
    type=Real(min=0),
    default=0.2,
    show_default=True,
    help="Scale of the new norms, relative to the values.",
)
@click.option(
    "--trained",
    type=PATH,
    metavar="FILE",
    help="Take the window and what training changed from the trained.gguf of `distill`; its GLA layers, or "
    "some of them by --gla-layers.",
)
@click.option("--ignore-rope-scaling", is_flag=True, help="Drop the base's scaled rotary frequencies.")
def command(
    base: Path,
    output: Path,
    gla_layers: str | None,
    window: int,
    dtype: str,
    seed: int,
    norm_scale: float,
    trained: Path | None,
    ignore_rope_scaling: bool,
) -> None:
    """Turn a Llama- or Qwen2-shaped model into SpikingBrain.

    BASE is a checkpoint's folder, a GGUF, or `default-base`. Everything but attention is kept; the new gates
    and norms are untrained, so the result needs distillation to be as good as the base.
    """
    layers = gla_layers_of(gla_layers, base, ignore_rope_scaling=ignore_rope_scaling)
    report = transplant(
        resolve_base(base),
        output,
        gla_layers=layers,
        window=window,
        dtype=dtype,
        seed=seed,
        norm_scale=norm_scale,
        ignore_rope_scaling=ignore_rope_scaling,
        trained=trained,
    )
    new = f"{report.n_trained} trained" if trained else f"{report.n_new} new and untrained"
    click.echo(
        f"{report.folder}: {report.n_copied} tensors from the base, {new}; "
        f"GLA layers {', '.join(str(n) for n, gla in enumerate(report.config.recurrent_layers) if gla)}"
    )
