"""Evaluation of a model and its base: perplexity, multiple choice and passkeys, for several spike k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sb_edge.engine import activate
from sb_edge.evaluate.finished import Finished
from sb_edge.evaluate.paired import paired_difference
from sb_edge.evaluate.quality import Quality, compare_quality, mean_quality
from sb_edge.evaluate.questions import Question, QuestionScore, answer_questions
from sb_edge.evaluate.retrieval import SEED, RecallTask, RetrievalScore, recall
from sb_edge.runtime.session import Model
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.output import json_fields
from sb_edge.util.progress import progress_bar
from sb_edge.util.user_cache import remembered_sha256


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
        first = self.runs[0].tasks
        for run, document in zip(self.runs, runs, strict=True):
            for name in ("questions", "recall"):
                scores = (getattr(tasks, name) for tasks in (run.tasks, self.base, first))
                for entry, *same in zip(document[name], *scores, strict=True):
                    found, base, initial = (score.hits for score in same)
                    entry["over_base"] = json_fields(paired_difference(found, base))
                    entry["over_first"] = json_fields(paired_difference(found, initial))
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
    finished: Finished | None = None,
) -> Evaluation:
    """Evaluate a model with each spike setting, and its base. Each is loaded once.

    Args:
        model, base: GGUFs with the same vocabulary.
        texts: at least one text, by its name.
        max_tokens: maximum number of tokens of each text.
        context: as in `compare_quality`.
        spikes: at least one setting, each as in `Model`.
        tasks: tasks of all runs.
        n_threads: None: `default_threads`.
        finished: measurements that were made before, to which new ones are added.

    Raises:
        GgufError, SpikeError: a file cannot be loaded, or has no spikes.
        InferenceError: see `compare_quality`, `answer_questions`, `Finished`.
        OutOfMemoryForecast: see `recall`.
    """
    parts = finished or Finished()
    runs = []
    with Model(base) as reference:
        base_sha256 = remembered_sha256(*reference.header.files)
        for setting in spikes:
            with Model(model, spikes=setting) as student:
                found, identity = [], _identity(student)
                for name, text in texts.items():
                    what = {
                        "measure": "text", "name": name, "text": sha256_of_bytes(text.encode()),
                        "tokens": max_tokens, "context": context, "base": base_sha256,
                    }  # fmt: skip
                    compare = partial(
                        compare_quality, student, reference, text, name,
                        max_tokens=max_tokens, context=context, n_threads=n_threads,
                    )  # fmt: skip
                    found.append(parts.take(what | identity, Quality, compare))
                runs.append(Run(tuple(found), _do_tasks(student, tasks, parts, n_threads)))
        return Evaluation(tuple(runs), _do_tasks(reference, tasks, parts, n_threads))


def _identity(model: Model) -> dict[str, Any]:
    """Properties of a model and its engine that change results, as JSON."""
    return {
        "model": remembered_sha256(*model.header.files),
        "spikes": model.spikes,
        "engine": activate().info.key,
    }


def _do_tasks(model: Model, tasks: Tasks, parts: Finished, n_threads: int | None) -> TaskScores:
    def answer() -> list[QuestionScore]:
        with progress_bar(f"{model.path.name}: questions", len(tasks.questions)) as advance:
            return answer_questions(model, tasks.questions, n_threads=n_threads, advance=advance)

    questions: list[QuestionScore] = []
    if tasks.questions:
        asked = "\n".join(question.model_dump_json() for question in tasks.questions)
        what: dict[str, Any] = {"measure": "questions", "questions": sha256_of_bytes(asked.encode())}
        questions = parts.take(what | _identity(model), list[QuestionScore], answer)
    scores = []
    for task in tasks.recall:
        what = {"measure": "recall", "seed": SEED, **json_fields(task)}
        ask = partial(recall, model, [task], n_threads=n_threads)
        scores += parts.take(what | _identity(model), list[RetrievalScore], ask)
    return TaskScores(tuple(questions), tuple(scores))
