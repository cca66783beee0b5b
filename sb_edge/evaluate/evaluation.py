"""A model and its base side by side: perplexity, multiple choice, passkeys; for several k of the spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from sb_edge.evaluate.passkey import PasskeyScore, prompt_tokens, retrieve_passkeys
from sb_edge.evaluate.quality import Quality, compare_quality
from sb_edge.evaluate.questions import Question, QuestionScore, answer_questions
from sb_edge.runtime.session import Model
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class Tasks:
    """What is asked beside perplexity.

    Attributes:
        questions: multiple choice; none: leave it out.
        distances: of passkeys, tokens; none: leave them out.
        trials: numbers for each distance, in its order; the last for those that follow, too.
    """

    questions: tuple[Question, ...] = ()
    distances: tuple[int, ...] = ()
    trials: tuple[int, ...] = (10,)

    @property
    def passkeys(self) -> tuple[tuple[int, int], ...]:
        """(distance, trials)."""
        return tuple(zip(self.distances, chain(self.trials, repeat(self.trials[-1])), strict=False))


@dataclass(frozen=True)
class TaskScores:
    """What a model made of `Tasks`."""

    questions: tuple[QuestionScore, ...]
    passkeys: tuple[PasskeyScore, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """A model beside its base.

    Attributes:
        runs: for each setting of the spikes how well the model predicts the text, and its tasks.
        base: the base's tasks.
    """

    runs: tuple[tuple[Quality, TaskScores], ...]
    base: TaskScores

    def to_json(self) -> dict[str, Any]:
        """The first run's figures, all `runs`, and `base`."""
        runs = [{**quality.to_json(), **tasks.to_json()} for quality, tasks in self.runs]
        return {**runs[0], "runs": runs, "base_tasks": self.base.to_json()}


def evaluate_model(
    model: Path,
    base: Path,
    text: str,
    name: str,
    *,
    max_tokens: int,
    context: int,
    spikes: Sequence[float | None],
    tasks: Tasks,
    n_threads: int | None = None,
) -> Evaluation:
    """Measure a model for each setting of its spikes, and its base.

    Args:
        model, base, text, name, max_tokens, context: as `compare_quality` takes them.
        spikes: at least one setting, each as `Model` takes it.
        tasks: the same for all.
        n_threads: None: as `default_threads`.

    Raises:
        GgufError, SpikeError, InferenceError, OutOfMemoryForecast: as what it calls.
    """
    runs = []
    for setting in spikes:
        quality = compare_quality(
            model,
            base,
            text,
            name,
            max_tokens=max_tokens,
            context=context,
            spikes=setting,
            n_threads=n_threads,
        )
        runs.append((quality, _do_tasks(model, setting, tasks, n_threads)))
    return Evaluation(tuple(runs), _do_tasks(base, None, tasks, n_threads))


def _do_tasks(path: Path, spikes: float | None, tasks: Tasks, n_threads: int | None) -> TaskScores:
    if not (tasks.questions or tasks.distances):
        return TaskScores((), ())
    questions: list[QuestionScore] = []
    passkeys: list[PasskeyScore] = []
    with Model(path, spikes=spikes) as model:
        if tasks.questions:
            with progress_bar(f"{path.name}: questions", len(tasks.questions)) as advance:
                questions = answer_questions(model, tasks.questions, n_threads=n_threads, advance=advance)
        if tasks.distances:
            total = sum(trials * prompt_tokens(distance) for distance, trials in tasks.passkeys)
            with progress_bar(f"{path.name}: passkeys, tokens", total) as advance:
                passkeys = retrieve_passkeys(model, tasks.passkeys, n_threads=n_threads, advance=advance)
    return TaskScores(tuple(questions), tuple(passkeys))
