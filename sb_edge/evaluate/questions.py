"""Multiple-choice questions: the answer is the choice with the largest probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sb_edge.evaluate.perplexity import built_in
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError
from sb_edge.util.input_files import read_text_input
from sb_edge.util.logits import log_softmax
from sb_edge.util.progress import Advance
from sb_edge.util.validation import first_problem

CONTEXT = 512
"""Maximum number of tokens of a question and its answer."""

Text = Annotated[str, Field(min_length=1)]


class Question(BaseModel):
    """A question and its choices; `answer` is the index of the correct choice."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Text
    question: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _has_an_answer(self) -> Question:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} is not an index of {len(self.choices)} choices")
        return self

    @property
    def prompt(self) -> str:
        """Text before an answer and the blank that separates them."""
        return f"Question: {self.question}\nAnswer:"


@dataclass(frozen=True)
class QuestionScore:
    """Accuracy on the questions of one kind.

    Attributes:
        kind: kind of the questions; "all" for all of them.
        n: number of questions.
        acc: share, 0 to 1, for which the correct choice has the largest probability.
        acc_norm: accuracy with log-probabilities divided by the choices' lengths in bytes.
        acc_error: standard error of `acc`.
        chance: expected `acc` of random choices.
        hits: for each question, whether the correct choice has the largest probability.
    """

    kind: str
    n: int
    acc: float
    acc_norm: float
    acc_error: float
    chance: float
    hits: tuple[bool, ...]


def read_questions(file: Path | None) -> list[Question]:
    """Read the questions of a JSON Lines file; None: this project's questions.

    Raises:
        InferenceError: a line is not a question, or the file has none.
        OSError: the file cannot be read.
    """
    data = (built_in("questions.jsonl") if file is None else read_text_input(file, InferenceError)).encode()
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found.append(Question.model_validate_json(line))
        except ValidationError as error:
            raise InferenceError(
                "is not a question",
                path=file,
                item=f"line {number}",
                found=first_problem(error, "line").line,
                expected='{"kind": ..., "question": ..., "choices": [...], "answer": 0}',
            ) from None
    if not found:
        raise InferenceError("has no questions", path=file)
    return found


def answer_questions(
    model: Model, questions: Sequence[Question], *, n_threads: int | None = None, advance: Advance
) -> list[QuestionScore]:
    """Score a model on questions.

    Args:
        model: model with a vocabulary.
        questions: at least one.
        n_threads: None: `default_threads`.
        advance: called once per question.

    Returns:
        Scores of all questions, then of each kind in order of first appearance.

    Raises:
        InferenceError: no vocabulary, a question is too long, or a choice changes its tokenization.
    """
    hits: dict[str, list[tuple[bool, bool, float]]] = {"all": []}
    with Session(model, n_ctx=CONTEXT, n_threads=n_threads) as session:
        for question in questions:
            prompt = model.tokenize(question.prompt, parse_special=False)
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
    """log p of a choice after the question, nats; `prompt` holds the question's tokens."""
    tokens = session.model.tokenize(f"{question.prompt} {choice}", parse_special=False)
    given = len(prompt)
    if tokens[:given] != prompt or len(tokens) == given:
        raise InferenceError("changes how its question is tokenized", item="choice", found=repr(choice))
    session.clear()
    rows = log_softmax(session.evaluate(tokens[:-1], all_logits=True)[given - 1 :])
    return float(rows[np.arange(len(rows)), tokens[given:]].sum())


def _score(kind: str, hits: Sequence[tuple[bool, bool, float]]) -> QuestionScore:
    acc, acc_norm, chance = np.array(hits, dtype=np.float64).mean(axis=0).tolist()
    error = math.sqrt(acc * (1 - acc) / len(hits))
    return QuestionScore(kind, len(hits), acc, acc_norm, error, chance, tuple(hit for hit, _, _ in hits))
