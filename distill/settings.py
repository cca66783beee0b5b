"""What decides a run's result, bit for bit: stored with every checkpoint and compared on resuming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sb_edge.arch.spike_plan import SpikePlan

StageName = Literal["layers", "whole", "long"]

STAGES: tuple[StageName, ...] = ("layers", "whole", "long")
"""In the order in which they are run: layer by layer, end to end, end to end with growing length."""

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class StageSettings(BaseModel):
    """One stage.

    Attributes:
        name: which.
        tokens: to train on; None: what `minutes` are enough for at the speed of the first steps.
        minutes: of training; None: as many as the tokens take.
        lengths: Sequence lengths in tokens, used in order for equal shares of the steps.
        batch: tokens an optimizer step, over all processes.
        learning_rate: after warm-up; it falls to a tenth along a cosine.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: StageName
    tokens: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    lengths: tuple[PositiveInt, ...]
    batch: PositiveInt
    learning_rate: PositiveFloat

    def sequences(self, length: int) -> int:
        """Of a step, over all processes, at that length."""
        return max(1, self.batch // length)


class TrainingSettings(BaseModel):
    """A run.

    Attributes:
        base: SHA-256 of the base's files.
        text: SHA-256 of the tokens.
        gla_layers: the student's.
        window: Window of the other layers in tokens.
        kept_heads: layer and key/value head of heads of GLA layers that keep windowed attention.
        seed: Random seed for new parameters and data order.
        adapter_rank: LoRA rank in the stages after the first.
        bf16: matrix products in bfloat16.
        micro_batch: tokens that go through the model at once, in each process.
        stages: those to run, in order.
        start: SHA-256 of the checkpoint that GLA layers start from.
        keep_attention: the other layers' attention stays as it is in the base.
        answer_weight: weight of an answer in text that asks for what it told, over that of other tokens.
        held_out: tokens of the text to measure on instead of training on them, at most.
        measure_every: tokens between two measurements; the best parameters by held-out loss are kept.
        spikes: spike plan of the student in the stages after the first; None: no spikes.
        spike_share: share of the steps, 0 to 1, and of the held-out loss, in which it does.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    base: str
    text: str
    gla_layers: tuple[int, ...]
    window: PositiveInt = 4096
    seed: Annotated[int, Field(ge=0)] = 0
    adapter_rank: PositiveInt = 16
    bf16: bool = False
    micro_batch: PositiveInt = 4096
    stages: tuple[StageSettings, ...]
    start: str | None = None
    keep_attention: bool = False
    answer_weight: PositiveFloat = 4.0
    held_out: Annotated[int, Field(ge=0)] = 8192
    measure_every: PositiveInt = 131072
    kept_heads: tuple[tuple[int, int], ...] = ()
    spikes: SpikePlan | None = None
    spike_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def is_coded(self, step: int) -> bool:
        """Whether a step of a stage after the first is one with spikes; these are spread evenly."""
        return self.spikes is not None and int((step + 1) * self.spike_share) > int(step * self.spike_share)

    def held_out_loss(self, measured: Mapping[str, Any]) -> float | None:
        """Loss that decides which parameters are kept, of a measurement; None without held-out text."""
        losses = [sum(measured[key]) for key in ("losses", "spike_losses") if key in measured]
        share = self.spike_share if len(losses) > 1 else 0.0
        return (1 - share) * losses[0] + share * losses[-1] if losses else None


def differences(ours: TrainingSettings, theirs: TrainingSettings) -> list[str]:
    """Where two runs differ: "stages.0.tokens 1000, not 2000", ours first."""
    left, right = (dict(_leaves(settings.model_dump(mode="json"))) for settings in (ours, theirs))
    return [
        f"{key} {left.get(key, 'absent')}, not {right.get(key, 'absent')}"
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    ]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{number}")
    else:
        yield key, value


DEFAULTS = {
    "layers": StageSettings(name="layers", tokens=8_000_000, lengths=(512,), batch=2048, learning_rate=5e-3),
    "whole": StageSettings(name="whole", tokens=4_000_000, lengths=(512,), batch=4096, learning_rate=1e-3),
    "long": StageSettings(
        name="long",
        tokens=1_000_000,
        lengths=(1024, 2048, 4096, 8192),
        batch=8192,
        learning_rate=3e-4,
    ),
}
"""Default stages, for a base of 135M parameters on a CPU; they take some hours there.

Layers learn fastest in small steps: over 60,000 tokens the errors of two layers fell to 0.51 with 1536 tokens
a step and a rate of 1e-3, to 0.41 with 4e-3, and to 0.28 with 512 tokens and 4e-3.
"""
