"""What a person sees while a stage trains: a bar, and a line of losses now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from types import TracebackType
from typing import Any

from torch import Tensor

from sb_edge.distill.parallel import World
from sb_edge.distill.state.training_state import Progress
from sb_edge.util.progress import Advance, note, progress_bar, stderr

INTERVAL = 30.0
"""Seconds between two lines."""


class Reporter:
    """Reports a stage's steps on standard error, in the first process only.

    Args:
        name: Name of the stage.
        curves: names of its losses.
        progress: where it begins, and how many steps it takes.
        tokens: Tokens per step, over all processes.
        world: the processes.
    """

    def __init__(
        self,
        name: str,
        curves: Sequence[str],
        progress: Progress,
        tokens: Callable[[int], int],
        world: World,
    ) -> None:
        self._name = name
        self._curves = curves
        self._first, self._steps = progress.step, progress.steps
        self._tokens = tokens
        self._silent = world.rank > 0
        self._stack = ExitStack()
        self._seen: list[Tensor] = []
        self._trained = 0
        self._started = self._shown = 0.0
        self._advance: Advance = lambda _: None

    def __enter__(self) -> Reporter:
        self._started = self._shown = time.monotonic()
        if not self._silent and stderr.is_terminal:
            self._advance = self._stack.enter_context(
                progress_bar(f"stage {self._name}", self._steps - self._first)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seen and error is None:
            self._show(self._steps)
        self._stack.__exit__(kind, error, trace)

    def step(self, done: int, losses: Tensor) -> None:
        """A step was taken.

        Args:
            done: how many by now.
            losses: [n] of the last one.
        """
        self._trained += self._tokens(done - 1)
        self._seen.append(losses)
        if self._silent:
            return
        self._advance(1)
        if time.monotonic() - self._shown >= INTERVAL:
            self._show(done)

    def measured(self, found: Mapping[str, Any]) -> None:
        """A measurement was taken: held-out losses, and answers found by kind."""
        if self._silent:
            return
        held_out = {"losses": "held-out loss", "spike_losses": "with spikes"}
        means = {name: fmean(found[key]) for key, name in held_out.items() if key in found}
        parts = [f"{name} {value:.4f}" for name, value in means.items()]
        parts += [f"{kind} {share:.0%}" for kind, share in found.get("found", {}).items()]
        note(f"stage {self._name}, after {found['tokens']} tokens: {', '.join(parts)}")

    def _show(self, done: int) -> None:
        if self._silent:
            return
        self._shown = now = time.monotonic()
        rate = self._trained / max(now - self._started, 1e-9)
        left = sum(map(self._tokens, range(done, self._steps))) / rate
        note(
            f"stage {self._name}, step {done} of {self._steps}: {self._losses()}; "
            f"{rate:.0f} tokens/s, {_duration(left)} left"
        )
        self._seen.clear()

    def _losses(self) -> str:
        mean = sum(self._seen[1:], self._seen[0]) / len(self._seen)
        if len(self._curves) == 1:
            return f"{self._curves[0]} {float(mean):.4f}"
        low, high = int(mean.argmin()), int(mean.argmax())
        return (
            f"error {float(mean.mean()):.4f} ({float(mean[low]):.4f} in {self._curves[low]}, "
            f"{float(mean[high]):.4f} in {self._curves[high]})"
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
