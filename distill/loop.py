"""The training loop: steps, checkpoints, and what stops it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from sb_edge.distill.base import Base
from sb_edge.distill.layer_recall import score_cases
from sb_edge.distill.parallel import World
from sb_edge.distill.settings import StageSettings, TrainingSettings
from sb_edge.distill.stages import Batch, LayerStage, Stage, make_stage, use_training_operator
from sb_edge.distill.state import training_state as checkpoint
from sb_edge.distill.state.reporter import Reporter
from sb_edge.distill.state.training_state import Progress, Saved
from sb_edge.distill.student import make_student, trained_parameters
from sb_edge.distill.text.order import DataOrder, split_text
from sb_edge.distill.text.tokenizer import ANSWER
from sb_edge.evaluate.recall_cases import RecallCase
from sb_edge.reference.device import describe_device
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import SpikeError, TrainingError

CLIP = 1.0
"""Largest norm of a group's gradient."""

WARM_UP = 50
FINAL_SHARE = 0.1
"""Share of the peak learning rate at the end of the cosine schedule."""

BETAS = (0.9, 0.95)

CALIBRATION_TOKENS = 2048
"""Tokens that decide where gates start."""

CALIBRATION = 3
"""Steps whose time decides how many a stage of `minutes` takes; their gradients are thrown away."""


@dataclass(frozen=True)
class TrainingRun:
    """All that training needs.

    Attributes:
        base: the teacher.
        text: [n] of `TEXT_TYPE`, to train on and to measure on.
        settings: what decides the result.
        folder: gets the checkpoints.
        world: the processes.
        save_every: seconds between checkpoints; 0: after every step.
        start: values that parameters start with, by name; the others start as `make_student` makes them.
        cases: cases of retrieval to measure progress on.
    """

    base: Base
    text: NDArray[np.void]
    settings: TrainingSettings
    folder: Path
    world: World
    save_every: float
    start: Mapping[str, Tensor] = field(default_factory=dict)
    cases: Sequence[RecallCase] = ()


def train(run: TrainingRun) -> tuple[SpikingBrain, Progress]:
    """Run all stages, from the folder's checkpoint on if there is one.

    Returns:
        The trained student, adapters still apart, and how it came about.

    Raises:
        TrainingError: a loss or gradient that is not finite, too little text, or a checkpoint that is damaged
            or belongs to other settings. The last good checkpoint stays.
        SpikeError: the spike plan is for another number of layers.
        OutputError: a checkpoint cannot be written.
    """
    settings = run.settings
    saved = checkpoint.load(run.folder, settings)
    torch.manual_seed(settings.seed)
    if settings.bf16 and run.world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 in the operator: ten bits, more than bfloat16 has
    student = make_student(
        run.base,
        settings.gla_layers,
        window=settings.window,
        seed=settings.seed,
        kept_heads=settings.kept_heads,
    )
    use_training_operator(student)
    student.set_spikes(settings.spikes)  # a plan that does not fit is refused before anything is trained
    student.set_spikes(None)
    progress = saved.progress if saved else Progress()
    begun: set[str] = set()
    for number, which in enumerate(settings.stages):
        stage = make_stage(which, settings, run.base.model, student, run.world)
        _set_parameters(student, {name: x for name, x in run.start.items() if name not in begun})
        begun |= trained_parameters(student).keys()  # the first stage has no adapters yet
        if number == progress.stage:
            trainer = _Trainer(run, which, stage, student, progress)
            trainer.run(saved)
            saved = None
    if saved:
        _set_parameters(student, saved.parameters)
    return student, progress


def _set_parameters(student: SpikingBrain, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in trained_parameters(student).items():
            if name in values:
                parameter.copy_(values[name])


class _Trainer:
    """One stage of a run."""

    def __init__(
        self, run: TrainingRun, which: StageSettings, stage: Stage, student: SpikingBrain, progress: Progress
    ) -> None:
        self._run = run
        self._which = which
        self._stage = stage
        self._student = student
        self._progress = progress
        self._optimizer: Optimizer = AdamW(
            [parameter for group in stage.groups for parameter in group.values()],
            lr=which.learning_rate,
            betas=BETAS,
            weight_decay=0.0,
        )
        self._orders: dict[int, DataOrder] = {}
        self._trained, self._held_out = split_text(len(run.text), run.settings.held_out)
        self._saved_at = time.monotonic()

    def run(self, saved: Saved | None) -> None:
        """Take the stage's remaining steps, then begin the next stage."""
        self._require_even_parts()
        if saved:
            _set_parameters(self._student, saved.parameters)
            checkpoint.set_random_states(saved.random)
        progress = self._progress
        if not progress.steps:
            progress.steps = self._count_steps()
        scheduler = _scheduler(self._optimizer, progress.steps)
        if saved and saved.optimizer and saved.scheduler:
            self._optimizer.load_state_dict(saved.optimizer)
            scheduler.load_state_dict(saved.scheduler)
        losses = self._begin_curve()
        session = self._begin_session()
        if not progress.step:
            if isinstance(self._stage, LayerStage) and not self._run.start:
                self._stage.calibrate(self._calibration_text())
            self._save(scheduler)
        started = time.monotonic()
        name, curves = self._which.name, self._stage.curves
        with Reporter(name, curves, progress, self._tokens, self._run.world) as report:
            while progress.step < progress.steps:
                losses[progress.step] = found = self._gradients(progress.step)
                # Only now is it known that the parameters, which this loss comes from, are good.
                session |= {"to_step": progress.step, "seconds": round(time.monotonic() - started, 3)}
                self._save_if_due(scheduler)
                self._optimizer.step()
                scheduler.step()
                self._optimizer.zero_grad(set_to_none=True)
                progress.step += 1
                report.step(progress.step, found)
                if self._measurement_due():
                    report.measured(self._measure())
        self._require_finite(self._batch(progress.steps - 1).tokens[:1])
        _set_parameters(self._student, progress.best)
        session |= {"to_step": progress.step, "seconds": round(time.monotonic() - started, 3)}
        progress.stage, progress.step, progress.steps, progress.best = progress.stage + 1, 0, 0, {}
        self._save(None)

    def _calibration_text(self) -> Tensor:
        """Some sequences to train on, the same in all processes."""
        count = max(1, CALIBRATION_TOKENS // self._which.lengths[0])
        return self._on_device(self._run.text[self._order(0).batch(0, count)]).tokens

    def _order(self, phase: int) -> DataOrder:
        """The order of the text in a phase."""
        if phase not in self._orders:
            length, seed = self._which.lengths[phase], self._run.settings.seed
            self._orders[phase] = DataOrder(
                self._trained, seed=seed, stage=self._progress.stage, phase=phase, length=length
            )
        return self._orders[phase]

    def _require_even_parts(self) -> None:
        size = self._run.world.size
        for length in self._which.lengths:
            sequences = self._which.sequences(length)
            if sequences % size:
                raise TrainingError(
                    "a step's sequences cannot be shared out evenly",
                    item=f"stage {self._which.name}, length {length}",
                    found=f"{sequences} sequences, {size} processes",
                    hint=f"give a --batch that is a multiple of {size * length}",
                )

    def _begin_curve(self) -> Tensor:
        """[steps, n], filled as far as the stage has come."""
        name, curves = self._which.name, self._progress.curves
        if name not in curves:
            curves[name] = torch.full((self._progress.steps, len(self._stage.curves)), torch.nan)
        return curves[name]

    def _begin_session(self) -> dict[str, object]:
        world = self._run.world
        session: dict[str, object] = {
            "stage": self._which.name,
            "from_step": self._progress.step,
            "to_step": self._progress.step,
            "seconds": 0.0,
            "processes": world.size,
            "threads": torch.get_num_threads(),
            "device": describe_device(world.device),
        }
        self._progress.sessions.append(session)
        return session

    def _count_steps(self) -> int:
        """By tokens, or by the time that some steps take, which are not counted."""
        which = self._which
        if which.minutes is None:
            return max(1, math.ceil((which.tokens or 0) / self._tokens(0)))
        times = []
        for step in range(CALIBRATION):
            start = time.monotonic()
            self._gradients(step, phases=CALIBRATION)
            self._optimizer.zero_grad(set_to_none=True)
            times.append(time.monotonic() - start)
        # Sequences of every length were tried; the first step of each process is slower than the rest.
        seconds = self._run.world.most(sum(times[1:]) / len(times[1:]))
        return max(1, int(which.minutes * 60 / seconds))

    def _phase(self, step: int, steps: int) -> tuple[int, int]:
        """A step's phase, and the number of the step within it."""
        phases = len(self._which.lengths)
        phase = min(step * phases // steps, phases - 1)
        return phase, step - math.ceil(phase * steps / phases)

    def _tokens(self, step: int) -> int:
        """Tokens of a step, over all processes."""
        phase, _ = self._phase(step, max(self._progress.steps, 1))
        length = self._which.lengths[phase]
        return length * self._which.sequences(length)

    def _tokens_before(self, step: int) -> int:
        """Tokens of all steps before a step of this stage."""
        phases, steps = len(self._which.lengths), self._progress.steps
        starts = [min(math.ceil(phase * steps / phases), step) for phase in range(phases)] + [step]
        return sum(self._tokens(first) * (end - first) for first, end in pairwise(starts))

    def _measurement_due(self) -> bool:
        """Whether a multiple of `measure_every` was passed, or the stage is at its end."""
        step, every = self._progress.step, self._run.settings.measure_every
        done = self._tokens_before(step)
        return step == self._progress.steps or done // every > (done - self._tokens(step - 1)) // every

    def _measure(self) -> dict[str, Any]:
        """Held-out losses and retrieval of the student as it is; keep its parameters if it is the best.

        Retrieval is measured without spikes.
        """
        progress, settings = self._progress, self._run.settings
        found: dict[str, Any] = {"step": progress.step, "tokens": self._tokens_before(progress.step)}
        if len(self._held_out):
            held_out = self._on_device(self._run.text[self._held_out]).parts(settings.micro_batch)
            found["losses"] = [round(float(x), 6) for x in self._stage.measure(held_out)]
            if settings.spikes and self._has_spikes:
                with self._coded(held_out[0]):
                    found["spike_losses"] = [round(float(x), 6) for x in self._stage.measure(held_out)]
        if self._run.cases:
            with torch.autocast(self._run.world.device.type, torch.bfloat16, enabled=settings.bf16):
                log_p, share = score_cases(self._student, self._run.cases)
            found |= {"log_p": log_p, "found": share}
        measured = progress.measured.setdefault(self._which.name, [])
        measured.append(found)
        losses = [loss for loss in map(settings.held_out_loss, measured) if loss is not None]
        if losses and losses[-1] == min(losses):
            progress.best = {
                name: parameter.detach().cpu().clone()
                for name, parameter in trained_parameters(self._student).items()
            }
        return found

    def _on_device(self, text: NDArray[np.void]) -> Batch:
        """[b, T] of `TEXT_TYPE` as a batch."""
        device = self._run.world.device
        counts = torch.from_numpy(text["counts"].astype(np.float32))
        weights = torch.where(counts == ANSWER, self._run.settings.answer_weight, counts)
        return Batch(torch.from_numpy(text["token"].astype(np.int64)).to(device), weights.to(device))

    def _batch(self, step: int, steps: int | None = None) -> Batch:
        """This process's part of a step."""
        world, which = self._run.world, self._which
        phase, within = self._phase(step, steps or self._progress.steps)
        length = which.lengths[phase]
        whole = self._order(phase).batch(within, which.sequences(length))
        own = len(whole) // world.size
        return self._on_device(self._run.text[whole[world.rank * own : (world.rank + 1) * own]])

    def _gradients(self, step: int, phases: int | None = None) -> Tensor:
        """Leave a step's clipped gradients in the parameters; its losses, float32 [n], on the CPU.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        settings = self._run.settings
        parts = self._batch(step, phases).parts(settings.micro_batch)
        coded = self._has_spikes and settings.is_coded(step)
        with self._coded(parts[0]) if coded else nullcontext():
            for number, part in enumerate(parts):
                self._stage.accumulate(part, sync=number == len(parts) - 1)
        losses = self._stage.finish().cpu()
        if not bool(losses.isfinite().all()):
            bad = int(losses.isfinite().logical_not().nonzero()[0])
            raise self._not_finite("the loss", self._stage.locate(parts[0].tokens) or self._stage.curves[bad])
        for group in self._stage.groups:
            norm = torch.nn.utils.clip_grad_norm_(group.values(), CLIP)
            if not bool(norm.isfinite()):
                name = next(
                    name for name, p in group.items() if p.grad is None or not bool(p.grad.isfinite().all())
                )
                raise self._not_finite("a gradient", name)
        return losses

    @property
    def _has_spikes(self) -> bool:
        """Whether the stage has steps with spikes: single layers learn without."""
        return not isinstance(self._stage, LayerStage)

    @contextmanager
    def _coded(self, part: Batch) -> Iterator[None]:
        """The student with spikes.

        Raises:
            TrainingError: an input is not finite; `part` is to find out where.
        """
        self._student.set_spikes(self._run.settings.spikes)
        try:
            yield
        except SpikeError:
            self._student.set_spikes(None)
            where = self._stage.locate(part.tokens) or "with spikes"
            raise self._not_finite("a spike count", where) from None
        finally:
            self._student.set_spikes(None)

    def _require_finite(self, batch: Tensor) -> None:
        where = self._stage.locate(batch)
        if where:
            raise self._not_finite("the last step's result", where)

    def _not_finite(self, what: str, where: str) -> TrainingError:
        kept = self._run.folder / checkpoint.NAME
        return TrainingError(
            f"{what} is not finite",
            item=f"stage {self._which.name}, step {self._progress.step}, {where}",
            hint=f"the last good checkpoint is kept ({kept}); begin anew with a lower --lr",
        )

    def _save_if_due(self, scheduler: SequentialLR) -> None:
        if time.monotonic() - self._saved_at >= self._run.save_every:
            self._save(scheduler)

    def _save(self, scheduler: SequentialLR | None) -> None:
        self._saved_at = time.monotonic()
        if self._run.world.rank:
            return
        parameters: dict[str, Tensor] = dict(trained_parameters(self._student))
        checkpoint.save(
            self._run.folder,
            self._run.settings,
            self._progress,
            parameters,
            None if scheduler is None else self._optimizer,
            None if scheduler is None else scheduler.state_dict(),
        )


def _scheduler(optimizer: Optimizer, steps: int) -> SequentialLR:
    """Linear warm-up, then a cosine down to `FINAL_SHARE`."""
    warm_up = max(1, min(WARM_UP, steps // 10))
    last = optimizer.param_groups[0]["lr"] * FINAL_SHARE
    rising = LinearLR(optimizer, 1 / warm_up, total_iters=warm_up)
    falling = CosineAnnealingLR(optimizer, max(1, steps - warm_up), last)
    return SequentialLR(optimizer, [rising, falling], [warm_up])
