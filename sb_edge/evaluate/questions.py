"""Multiple choice: which of a few answers a model takes to be the likeliest."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError
from sb_edge.util.logits import log_softmax
from sb_edge.util.progress import Advance

CONTEXT = 512
"""Tokens that a question with an answer may have."""

Text = Annotated[str, Field(min_length=1)]


class Question(BaseModel):
    """A question and its possible answers; `answer` is the place of the right one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Text
    question: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _has_an_answer(self) -> Question:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} is none of {len(self.choices)} choices")
        return self

    @property
    def prompt(self) -> str:
        """What an answer follows, after a blank."""
        return f"Question: {self.question}\nAnswer:"


@dataclass(frozen=True)
class QuestionScore:
    """How many questions of a kind were answered.

    Attributes:
        kind: of the questions, "all" for all of them.
        n: number of questions.
        acc: share, 0 to 1, whose right answer has the largest probability.
        acc_norm: the same with log-probabilities over the answers' bytes, so that long ones do not lose.
        acc_error: standard error of `acc`.
        chance: of `acc` for a model that guesses.
    """

    kind: str
    n: int
    acc: float
    acc_norm: float
    acc_error: float
    chance: float


def read_questions(file: Path | None) -> list[Question]:
    """The questions of a JSON Lines file; without a file, those of this project.

    Raises:
        InferenceError: a line is no question, or there is none.
        OSError: the file cannot be read.
    """
    if file is None:
        data = (importlib.resources.files("sb_edge.evaluate") / "data" / "questions.jsonl").read_bytes()
    else:
        data = file.read_bytes()
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found.append(Question.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise InferenceError(
                "is no question",
                path=file,
                item=f"line {number}",
                found=f"{place}: {first['msg']}",
                expected='{"kind": ..., "question": ..., "choices": [...], "answer": 0}',
            ) from None
    if not found:
        raise InferenceError("has no questions", path=file)
    return found


def answer_questions(
    model: Model, questions: Sequence[Question], *, n_threads: int | None = None, advance: Advance
) -> list[QuestionScore]:
    """Ask a model every question; the answer is the choice that it takes to be the likeliest continuation.

    Args:
        model: with a vocabulary.
        questions: at least one.
        n_threads: None: as `default_threads`.
        advance: told of each question.

    Returns:
        The scores of all questions, then of each kind, in the order in which kinds first appear.

    Raises:
        InferenceError: no vocabulary, a question is too long, or a choice changes how it is cut into tokens.
    """
    hits: dict[str, list[tuple[bool, bool, float]]] = {"all": []}
    with Session(model, n_ctx=CONTEXT, n_threads=n_threads) as session:
        for question in questions:
            prompt = model.tokenize(question.prompt)
            sums = np.array([_log_probability(session, prompt, question, each) for each in question.choices])
            lengths = np.array([len(choice.encode()) for choice in question.choices])
            hit = (
                int(sums.argmax()) == question.answer,
                int((sums / lengths).argmax()) == question.answer,
                1 / len(question.choices),
            )
            hits["all"].append(hit)
            hits.setdefault(question.kind, []).append(hit)
            advance(1)
    return [_score(kind, found) for kind, found in hits.items()]


def _log_probability(session: Session, prompt: list[int], question: Question, choice: str) -> float:
    """log p of a choice after the question, nats; `prompt` is the question's in tokens."""
    tokens = session.model.tokenize(f"{question.prompt} {choice}")
    given = len(prompt)
    if tokens[:given] != prompt or len(tokens) == given:
        raise InferenceError("cannot be told apart from its question", item="choice", found=repr(choice))
    session.clear()
    rows = session.evaluate(tokens[:-1], all_logits=True)[given - 1 :].astype(np.float64)
    return sum(float(log_softmax(row)[token]) for row, token in zip(rows, tokens[given:], strict=True))


def _score(kind: str, hits: Sequence[tuple[bool, bool, float]]) -> QuestionScore:
    acc, acc_norm, chance = np.array(hits, dtype=np.float64).mean(axis=0).tolist()
    return QuestionScore(kind, len(hits), acc, acc_norm, math.sqrt(acc * (1 - acc) / len(hits)), chance)
