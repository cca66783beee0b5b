"""Lists of layers on the command line: given, or chosen by what the layers retrieve."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.arch.layer_map import MAX_LAYERS
from sb_edge.distill import require_training
from sb_edge.models.registry import resolve_base

GLA_LAYERS_HELP = (
    "Layers that become GLA: 0,2,4 or 6-9; auto:15 (a number) or auto:0.5 (a share) keeps the layers that "
    "retrieve, see `sb-edge layers`.  [default: the even layers]"
)


def parse_layers(text: str, option: str = "--gla-layers") -> tuple[int, ...]:
    """A list such as 0,2,4 or 6-9, as `option` takes it."""
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers or numbers.stop > MAX_LAYERS:
                raise ValueError
            layers.extend(numbers)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list such as 0,2,4 or 6-9", param_hint=option) from None
    return tuple(layers)


def gla_layers_of(text: str | None, base: Path, *, ignore_rope_scaling: bool) -> tuple[int, ...] | None:
    """The value of `--gla-layers` for a base; with `auto:` the base is measured, once.

    Raises:
        click.BadParameter: not such a value.
        SbEdgeError: the base cannot be measured.
    """
    if text is None or not text.startswith("auto:"):
        return None if text is None else parse_layers(text)
    try:
        wanted = float(text.removeprefix("auto:"))
    except ValueError:
        wanted = 0.0
    if not (wanted.is_integer() and wanted >= 1) and not 0 < wanted < 1:
        raise click.BadParameter(
            f"{text!r} is not auto: and a number of layers or a share of them", param_hint="--gla-layers"
        )
    require_training()
    from sb_edge.distill.layer_recall import choose_layers

    source = resolve_base(base)
    return choose_layers(source, wanted, ignore_rope_scaling=ignore_rope_scaling)
