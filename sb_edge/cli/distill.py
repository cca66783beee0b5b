"""`sb-edge distill`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sb_edge.cli.options import integer_option
from sb_edge.cli.transplant import parse_layers
from sb_edge.distill import require_training
from sb_edge.distill.settings import DEFAULTS
from sb_edge.models.registry import resolve_gguf

STAGES = ("layers", "whole", "long")

FACTORS = {"k": 1e3, "M": 1e6, "G": 1e9}


class StageValue(click.ParamType):
    """STAGE=VALUE, VALUE a positive number with k, M or G behind it, or several with colons between."""

    name = "STAGE=VALUE"

    def __init__(self, kind: type[int] | type[float], *, several: bool = False) -> None:
        self._kind = kind
        self._several = several

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        stage, equals, text = value.partition("=")
        if stage not in STAGES or not equals:
            self.fail(f"{value!r} is not one of {', '.join(STAGES)}, = and a value", param, ctx)
        numbers = [self._number(part, value, param, ctx) for part in text.split(":")]
        if not self._several and len(numbers) > 1:
            self.fail(f"{value!r} has more than one value", param, ctx)
        return stage, tuple(numbers) if self._several else numbers[0]

    def _number(
        self, text: str, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        factor = FACTORS.get(text[-1:], 1)
        try:
            number = float(text[:-1] if factor != 1 else text) * factor
        except ValueError:
            number = -1
        if not 0 < number < 1e15 or (self._kind is int and number != int(number)):
            self.fail(f"{value!r} holds no positive number of that kind", param, ctx)
        return self._kind(number)


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--text",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Train on this file or folder (repeatable).",
)
@click.option("--find-text", is_flag=True, help="Train on free documentation found on this machine.")
@click.option(
    "--find-tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Of that, so many at most, in documents drawn at random.  [default: all]",
)
@integer_option("--samples", default=0, help="Train on so many tokens that the base writes itself.", least=0)
@integer_option(
    "--recall", default=0, help="Train on so many tokens of texts that ask for what they told.", least=0
)
@click.option("--text-only", is_flag=True, help="Stop when the text is ready.")
@click.option(
    "--start-from",  # not --start, which torchrun takes for the beginning of an option of its own
    "start",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Start GLA layers, and adapters of the same rank and layers, as another run of this base left them.",
)
@click.option("--gla-layers", help="Layers that become GLA, as 0,2,4 or 6-9.  [default: the even ones]")
@integer_option("--window", default=4096, help="Window of the others.")
@click.option(
    "--stages", default="layers,whole,long", show_default=True, help="Stages to run, in this order."
)
@click.option(
    "--tokens",
    multiple=True,
    type=StageValue(int),
    help="Tokens of a stage.  [default: layers=8M, whole=4M, long=1M]",
)
@click.option(
    "--minutes",
    multiple=True,
    type=StageValue(float),
    help="Length of a stage instead, by the speed of its first steps.",
)
@click.option(
    "--lengths",
    multiple=True,
    type=StageValue(int, several=True),
    help="Tokens a sequence, one value after the other.  [default: 512; long=1024:2048:4096:8192]",
)
@click.option(
    "--batch",
    multiple=True,
    type=StageValue(int),
    help="Tokens an optimizer step.  [default: layers=2048, whole=4096, long=8192]",
)
@integer_option(
    "--micro-batch", default=4096, help="Tokens at once in each process; the rest of a step is accumulated."
)
@click.option(
    "--lr",
    multiple=True,
    type=StageValue(float),
    help="Highest learning rate.  [default: layers=5e-3, whole=1e-3, long=3e-4]",
)
@integer_option("--adapter-rank", default=16, help="Of the adapters.")
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, metax, metax:N.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=300,
    show_default=True,
    help="Seconds between checkpoints.",
)
@click.option("--outtype", type=click.Choice(["f32", "f16", "bf16"]), default="f32", show_default=True)
@click.option("--ignore-rope-scaling", is_flag=True, help="Drop the base's scaled rotary frequencies.")
def command(
    base: Path,
    output: Path,
    text: tuple[Path, ...],
    find_text: bool,
    find_tokens: int | None,
    samples: int,
    recall: int,
    text_only: bool,
    start: Path | None,
    gla_layers: str | None,
    window: int,
    stages: str,
    tokens: Sequence[tuple[str, int]],
    minutes: Sequence[tuple[str, float]],
    lengths: Sequence[tuple[str, tuple[int, ...]]],
    batch: Sequence[tuple[str, int]],
    micro_batch: int,
    lr: Sequence[tuple[str, float]],
    adapter_rank: int,
    bf16: bool,
    device: str,
    seed: int,
    save_every: float,
    outtype: str,
    ignore_rope_scaling: bool,
) -> None:
    """Train a SpikingBrain student of a Llama- or Qwen2-shaped base.

    BASE is a checkpoint's folder, a GGUF, or `default-base`. Three stages: each GLA layer learns its
    attention layer's output (layers); all of them, with low-rank adapters on the rest, learn the base's
    predictions (whole); the same with growing length (long). Repeat the command to go on after an
    interruption. Under torchrun it runs on several GPUs. The student is written to OUTPUT/student, ready
    for `sb-edge convert`.
    """
    require_training()
    from sb_edge.distill.text.gather import TextRequest
    from sb_edge.distill.training_run import DistillRecipe, distill

    chosen = _stage_names(stages)
    changes: dict[str, dict[str, Any]] = {name: {} for name in STAGES}
    for key, values in (("tokens", tokens), ("lengths", lengths), ("batch", batch), ("learning_rate", lr)):
        for stage, value in values:
            changes[stage][key] = value
    for stage, value in minutes:
        changes[stage] |= {"minutes": value, "tokens": None}
    recipe = DistillRecipe(
        stages=tuple(DEFAULTS[name].model_copy(update=changes[name]) for name in chosen),
        gla_layers=None if gla_layers is None else tuple(parse_layers(gla_layers)),
        window=window,
        seed=seed,
        adapter_rank=adapter_rank,
        bf16=bf16,
        micro_batch=micro_batch,
        outtype=outtype,
        ignore_rope_scaling=ignore_rope_scaling,
        start=start,
    )
    written = distill(
        base if base.exists() else resolve_gguf(str(base)),
        output,
        TextRequest(text, find_text, find_tokens, samples, recall, seed, bf16),
        recipe,
        device=device,
        save_every=save_every,
        text_only=text_only,
        command=shlex.join(["sb-edge", *sys.argv[1:]]),
    )
    click.echo(str(written))


def _stage_names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(STAGES) or names != [name for name in STAGES if name in names]:
        raise click.BadParameter(f"{text!r} is not some of {','.join(STAGES)}", param_hint="--stages")
    return names
