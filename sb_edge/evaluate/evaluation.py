"""Evaluation of a model and its base: perplexity, multiple choice and passkeys, for several spike k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.evaluate.quality import Quality, compare_quality, mean_quality
from sb_edge.evaluate.questions import Question, QuestionScore, answer_questions
from sb_edge.evaluate.retrieval import RecallTask, RetrievalScore, paired_difference, recall
from sb_edge.runtime.session import Model
from sb_edge.util.output import json_fields
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class Tasks:
    """Tasks in addition to perplexity.

    Attributes:
        questions: multiple-choice questions; empty: skip them.
        recall: retrieval from the context; empty: skip it.
    """

    questions: tuple[Question, ...] = ()
    recall: tuple[RecallTask, ...] = ()


@dataclass(frozen=True)
class TaskScores:
    """A model's scores on `Tasks`."""

    questions: tuple[QuestionScore, ...]
    recall: tuple[RetrievalScore, ...]


@dataclass(frozen=True)
class Run:
    """Results of a model with one spike setting.

    Attributes:
        texts: prediction quality on each text.
        tasks: scores on the tasks.
    """

    texts: tuple[Quality, ...]
    tasks: TaskScores

    @property
    def quality(self) -> Quality:
        """Mean prediction quality over the texts."""
        return mean_quality(self.texts)

    def to_json(self) -> dict[str, Any]:
        """Fields of `quality` and of the scores, and `texts`."""
        texts = [json_fields(each) for each in self.texts]
        return {**json_fields(self.quality), "texts": texts, **json_fields(self.tasks)}


@dataclass(frozen=True)
class Evaluation:
    """Results of a model and its base.

    Attributes:
        runs: one for each spike setting.
        base: task scores of the base.
    """

    runs: tuple[Run, ...]
    base: TaskScores

    def to_json(self) -> dict[str, Any]:
        """The results of the first run, of all `runs`, and of the base."""
        runs = [run.to_json() for run in self.runs]
        for run, document in zip(self.runs, runs, strict=True):
            for entry, *scores in zip(
                document["recall"], run.tasks.recall, self.base.recall, self.runs[0].tasks.recall, strict=True
            ):
                found, base, first = scores
                entry["over_base"] = json_fields(paired_difference(found, base))
                entry["over_first"] = json_fields(paired_difference(found, first))
        return {**runs[0], "runs": runs, "base_tasks": json_fields(self.base)}


def evaluate_model(
    model: Path,
    base: Path,
    texts: Mapping[str, str],
    *,
    max_tokens: int,
    context: int,
    spikes: Sequence[float | None],
    tasks: Tasks,
    n_threads: int | None = None,
) -> Evaluation:
    """Evaluate a model with each spike setting, and its base.

    Args:
        model, base, context: as in `compare_quality`.
        texts: at least one text, by its name.
        max_tokens: maximum number of tokens of each text.
        spikes: at least one setting, each as in `Model`.
        tasks: tasks of all runs.
        n_threads: None: `default_threads`.

    Raises:
        GgufError, SpikeError, InferenceError: see `compare_quality`, `answer_questions`.
        OutOfMemoryForecast: see `recall`.
    """
    runs = []
    for setting in spikes:
        found = tuple(
            compare_quality(
                model,
                base,
                text,
                name,
                max_tokens=max_tokens,
                context=context,
                spikes=setting,
                n_threads=n_threads,
            )
            for name, text in texts.items()
        )
        runs.append(Run(found, _do_tasks(model, setting, tasks, n_threads)))
    return Evaluation(tuple(runs), _do_tasks(base, None, tasks, n_threads))


def _do_tasks(path: Path, spikes: float | None, tasks: Tasks, n_threads: int | None) -> TaskScores:
    if not (tasks.questions or tasks.recall):
        return TaskScores((), ())
    questions: list[QuestionScore] = []
    scores: list[RetrievalScore] = []
    with Model(path, spikes=spikes) as model:
        if tasks.questions:
            with progress_bar(f"{path.name}: questions", len(tasks.questions)) as advance:
                questions = answer_questions(model, tasks.questions, n_threads=n_threads, advance=advance)
        if tasks.recall:
            scores = recall(model, tasks.recall, n_threads=n_threads)
    return TaskScores(tuple(questions), tuple(scores))
