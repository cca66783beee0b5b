"""`sb-edge distill`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sb_edge.arch.model_spikes import check_plan
from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.cli.layer_lists import GLA_LAYERS_HELP, gla_layers_of
from sb_edge.cli.options import choice_option, integer_option, tokens_option
from sb_edge.cli.params import PATH, CommaSeparated, Real, Tokens
from sb_edge.cli.recipe import recipe_option
from sb_edge.cli.spike_options import SpikeK
from sb_edge.distill import require_training
from sb_edge.distill.settings import DEFAULTS
from sb_edge.gguf.reader import read_header
from sb_edge.models.registry import resolve_base, resolve_gguf
from sb_edge.util.errors import SpikeError

STAGES = ("layers", "whole", "long")

TRAINING_TOKENS = Tokens(most=10**15)
POSITIVE = Real(0, min_open=True)


class StageValue(click.ParamType):
    """STAGE=VALUE, or several values with colons between.

    Args:
        kind: Type of a value.
        several: Whether several are accepted.
    """

    name = "STAGE=VALUE"

    def __init__(self, kind: click.ParamType, *, several: bool = False) -> None:
        self._kind = kind
        self._several = several

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        stage, equals, text = value.partition("=")
        if stage not in STAGES or not equals:
            self.fail(f"{value!r} is not one of {', '.join(STAGES)}, = and a value", param, ctx)
        numbers = [self._kind.convert(part, param, ctx) for part in text.split(":")]
        if not self._several and len(numbers) > 1:
            self.fail(f"{value!r} has more than one value", param, ctx)
        return stage, tuple(numbers) if self._several else numbers[0]


class Head(click.ParamType):
    """LAYER:HEAD."""

    name = "LAYER:HEAD"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """The two numbers; fails as click's own types do."""
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", value, re.ASCII)
        if not found:
            self.fail(f"{value!r} is not a layer and a head such as 18:0", param, ctx)
        return int(found[1]), int(found[2])


class PlanSource(click.ParamType):
    """A k, or the name of a GGUF."""

    name = "K|FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str | None:
        """A number where it is one; fails as click's own types do."""
        try:
            float(value)
        except ValueError:
            return str(value)
        return SpikeK().convert(value, param, ctx)


@click.command()
@click.argument("base", type=PATH)
@recipe_option
@click.option("-o", "--output", required=True, type=PATH, help="Folder of the run.")
@click.option("--text", multiple=True, type=PATH, help="Train on this file or folder (repeatable).")
@tokens_option("--packages", default=0, help="Add N tokens of free text of listed packages.", least=0)
@tokens_option("--samples", default=0, help="Add N tokens that the base generates.", least=0)
@tokens_option("--recall", default=0, help="Add N tokens of synthetic recall data.", least=0)
@click.option("--text-only", is_flag=True, help="Stop when the text is ready.")
@click.option(
    "--start-from",  # not --start, which torchrun takes for the beginning of an option of its own
    "start",
    type=PATH,
    metavar="RUN",
    help="Start from the GLA layers, and adapters of equal rank, of another run of this base.",
)
@click.option("--gla-layers", help=GLA_LAYERS_HELP)
@click.option(
    "--keep-heads",
    type=CommaSeparated(Head(), "LAYER:HEAD,..."),
    help="Key/value heads of GLA layers that keep window attention: 18:0,18:2 (an experiment; the engine "
    "does not run such students).",
)
@tokens_option("--window", default=4096, help="Window of the other layers in tokens.")
@click.option(
    "--stages", default="layers,whole,long", show_default=True, help="Training stages, in this order."
)
@click.option(
    "--tokens",
    multiple=True,
    type=StageValue(TRAINING_TOKENS),
    help="Training tokens per stage.  [default: layers=8000000, whole=4000000, long=1000000]",
)
@click.option(
    "--minutes",
    multiple=True,
    type=StageValue(POSITIVE),
    help="Minutes per stage instead, from the speed of its first steps.",
)
@click.option(
    "--lengths",
    multiple=True,
    type=StageValue(TRAINING_TOKENS, several=True),
    help="Sequence lengths per stage, in order.  [default: 512; long=1024:2048:4096:8192]",
)
@click.option(
    "--batch",
    multiple=True,
    type=StageValue(TRAINING_TOKENS),
    help="Tokens per optimizer step.  [default: layers=2048, whole=4096, long=8192]",
)
@tokens_option(
    "--micro-batch", default=4096, help="Tokens per forward pass and process; gradients are accumulated."
)
@click.option(
    "--lr",
    multiple=True,
    type=StageValue(POSITIVE),
    help="Peak learning rate per stage.  [default: layers=5e-3, whole=1e-3, long=3e-4]",
)
@integer_option("--adapter-rank", default=16, help="LoRA rank of the adapters.")
@click.option("--keep-attention", is_flag=True, help="Put no adapters on the window layers' attention.")
@click.option(
    "--answer-weight",
    type=POSITIVE,
    default=4.0,
    show_default=True,
    help="Weight of answers in recall data.",
)
@tokens_option("--held-out", default=8192, help="Tokens of the text to measure on, not to train on.", least=0)
@tokens_option(
    "--measure-every", default=131072, help="Tokens between measurements; the best parameters are kept."
)
@click.option(
    "--spikes",
    type=PlanSource(),
    help="Train the stages after the first with spikes: a k, or the GGUF whose spike plan is used.",
)
@click.option(
    "--spike-share",
    type=Real(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the steps with spikes.",
)
@click.option("--bf16", is_flag=True, help="Compute matrix products in bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda[:N], metax[:N].")
@click.option("-s", "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option(
    "--save-every",
    type=Real(min=0),
    default=300,
    show_default=True,
    help="Seconds between checkpoints.",
)
@choice_option("--outtype", ["f32", "f16", "bf16"], "f32", "Type of the student.")
@click.option("--ignore-rope-scaling", is_flag=True, help="Drop the base's scaled rotary frequencies.")
def command(
    base: Path,
    output: Path,
    text: tuple[Path, ...],
    packages: int,
    samples: int,
    recall: int,
    text_only: bool,
    start: Path | None,
    gla_layers: str | None,
    keep_heads: tuple[tuple[int, int], ...] | None,
    window: int,
    stages: str,
    tokens: Sequence[tuple[str, int]],
    minutes: Sequence[tuple[str, float]],
    lengths: Sequence[tuple[str, tuple[int, ...]]],
    batch: Sequence[tuple[str, int]],
    micro_batch: int,
    lr: Sequence[tuple[str, float]],
    adapter_rank: int,
    keep_attention: bool,
    answer_weight: float,
    held_out: int,
    measure_every: int,
    spikes: float | str | None,
    spike_share: float,
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
        gla_layers=gla_layers_of(gla_layers, base, ignore_rope_scaling=ignore_rope_scaling),
        kept_heads=keep_heads or (),
        window=window,
        seed=seed,
        adapter_rank=adapter_rank,
        keep_attention=keep_attention,
        answer_weight=answer_weight,
        held_out=held_out,
        measure_every=measure_every,
        spikes=spikes if spikes is None else _plan(spikes),
        spike_share=spike_share,
        bf16=bf16,
        micro_batch=micro_batch,
        outtype=outtype,
        ignore_rope_scaling=ignore_rope_scaling,
        start=start,
    )
    written = distill(
        resolve_base(base),
        output,
        TextRequest(text, packages, samples, recall, seed, bf16),
        recipe,
        device=device,
        save_every=save_every,
        text_only=text_only,
        command=shlex.join(["sb-edge", *sys.argv[1:]]),
    )
    click.echo(str(written))


def _plan(source: float | str) -> SpikePlan:
    if isinstance(source, float):
        return SpikePlan(k=source)
    path = resolve_gguf(source)
    plan = check_plan(read_header(path))
    if plan is None:
        raise SpikeError("has no spike plan", path=path, hint="`sb-edge spikes tune` makes one")
    return plan


def _stage_names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(STAGES) or names != [name for name in STAGES if name in names]:
        raise click.BadParameter(f"{text!r} is not some of {','.join(STAGES)}", param_hint="--stages")
    return names
