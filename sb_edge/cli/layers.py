"""`sb-edge layers`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from sb_edge.cli.file_options import FileCommand, OutputFile
from sb_edge.cli.layer_lists import parse_layers
from sb_edge.cli.options import integer_option, json_option, tokens_option
from sb_edge.cli.params import PATH
from sb_edge.distill import require_training
from sb_edge.models.registry import resolve_base
from sb_edge.util.output import emit


@click.command(cls=FileCommand)
@click.argument("base", type=PATH)
@integer_option("--cases", default=40, help="Dictionaries, and facts; a third as many passkeys.")
@tokens_option("--span", default=16, help="Tokens that a limited layer sees.")
@click.option("--heads", help="Limit the heads of these layers one by one, too: 0,2,4 or 6-9.")
@click.option("--grouped", is_flag=True, help="With --heads: the query heads of a key/value head together.")
@click.option("--plot", type=OutputFile(), help="Draw retrieval against perplexity (PNG, SVG).")
@click.option("--bf16", is_flag=True, help="Compute matrix products in bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda[:N], metax[:N].")
@click.option("--ignore-rope-scaling", is_flag=True, help="Drop the base's scaled rotary frequencies.")
@json_option
def command(
    base: Path,
    cases: int,
    span: int,
    heads: str | None,
    grouped: bool,
    plot: Path | None,
    bf16: bool,
    device: str,
    ignore_rope_scaling: bool,
    json_target: str | None,
) -> None:
    """Measure what each attention layer of a base does for retrieval.

    BASE is a checkpoint's folder, a GGUF, or `default-base`. One layer at a time sees the newest tokens only;
    what the model then no longer finds in its context, that layer retrieves. Nothing is trained. The layers
    whose limits cost least can become GLA: `--gla-layers auto:N` of `transplant` and `distill` takes them.
    """
    require_training()
    from sb_edge.distill.base import load_base
    from sb_edge.distill.layer_recall import measure_layers
    from sb_edge.distill.layer_table import layer_table, plot_layers
    from sb_edge.reference.device import pick_device

    source = load_base(
        resolve_base(base),
        pick_device(device),
        ignore_rope_scaling=ignore_rope_scaling,
    )
    chosen = () if heads is None else parse_layers(heads, "--heads")
    found = measure_layers(source, cases=cases, span=span, head_layers=chosen, grouped=grouped, bf16=bf16)
    if plot is not None:
        plot_layers(plot, found)

    def show(console: Console) -> None:
        console.print(layer_table(found, found.layers))
        if found.heads:
            console.print()
            console.print(layer_table(found, found.heads))

    emit(found, json_target, show)
