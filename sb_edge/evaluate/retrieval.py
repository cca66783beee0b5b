"""Retrieval from the context on the engine: passkeys, dictionaries and facts, at given distances."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.evaluate.recall_cases import (
    Encode,
    Kind,
    RecallCase,
    dictionary_case,
    facts_case,
    passkey_case,
)
from sb_edge.gguf.reader import read_header
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError
from sb_edge.util.logits import log_softmax
from sb_edge.util.output import json_fields
from sb_edge.util.progress import progress_bar

RECALL_TASKS: dict[str, tuple[Kind, int]] = {
    "passkey": ("passkey", 0),
    "dictionary-5": ("dictionary", 5),
    "dictionary-10": ("dictionary", 10),
    "dictionary-20": ("dictionary", 20),
    "facts": ("facts", 0),
}
"""Kind of case, and pairs of a dictionary, by name of the task."""

SEED = 20261122


@dataclass(frozen=True)
class Distance:
    """Tokens between the last thing told and the question.

    Attributes:
        amount: number of tokens, or of windows.
        is_windows: whether `amount` counts windows of the model.
    """

    amount: float
    is_windows: bool = False

    def tokens(self, model: Path) -> int:
        """The distance in tokens for a model.

        Raises:
            GgufError: not a GGUF.
            InferenceError: the model has no window.
        """
        if not self.is_windows:
            return int(self.amount)
        window = read_header(model).integer("attention.sliding_window", 0)
        if not window:
            raise InferenceError(
                "has no window", path=model, item="attention.sliding_window", hint="give distances in tokens"
            )
        return round(self.amount * window)


@dataclass(frozen=True)
class RecallTask:
    """Cases of one kind at one distance.

    Attributes:
        kind: the kind of case.
        distance: tokens of other text before the question.
        trials: number of cases.
        pairs: words of a dictionary; 0 for other kinds.
    """

    kind: Kind
    distance: int
    trials: int
    pairs: int = 0

    @property
    def name(self) -> str:
        """Kind with the number of pairs: "dictionary of 10"."""
        return f"{self.kind} of {self.pairs}" if self.pairs else self.kind

    def cases(self, encode: Encode) -> list[RecallCase]:
        """The cases; at every distance and for every tokenizer the same but for the text between."""
        cases = []
        for trial in range(self.trials):
            rng = random.Random(f"{SEED} {self.name} {trial}")
            if self.kind == "passkey":
                cases.append(passkey_case(encode, rng, self.distance))
            elif self.kind == "dictionary":
                cases.append(dictionary_case(encode, rng, self.pairs, self.distance))
            else:
                cases.append(facts_case(encode, rng, self.distance))
        return cases


@dataclass(frozen=True)
class RetrievalScore:
    """A model's answers to a task.

    Attributes:
        task: the task.
        hits: for each case, whether greedy decoding gives every token of the answer.
        log_p: mean log probability of an answer's tokens, nats.
    """

    task: RecallTask
    hits: tuple[bool, ...]
    log_p: float

    @property
    def found(self) -> float:
        """Share of cases, 0 to 1, that were answered."""
        return sum(self.hits) / len(self.hits)

    def to_json(self) -> dict[str, Any]:
        """Fields of the task, `found`, `log_p` and `hits`."""
        return json_fields(self.task) | json_fields(self, "found", "log_p", "hits")


def recall_tasks(distances: Sequence[int], trials: int, names: Sequence[str]) -> list[RecallTask]:
    """Tasks of `RECALL_TASKS` at each distance."""
    return [
        RecallTask(kind, distance, trials, pairs)
        for distance in distances
        for kind, pairs in (RECALL_TASKS[name] for name in names)
    ]


def encode_with(model: Model) -> Encode:
    """Tokens of a part of a text, as a model has them behind a line feed."""
    line_end = model.tokenize("\n", add_special=False)[-1]

    def encode(text: str) -> list[int]:
        return model.tokenize(text, after=line_end)

    return encode


def recall(
    model: Model, tasks: Sequence[RecallTask], *, n_threads: int | None = None
) -> list[RetrievalScore]:
    """Ask a model all cases, each in an empty context.

    Args:
        model: model with a vocabulary.
        tasks: with at least one case each.
        n_threads: None: `default_threads`.

    Raises:
        InferenceError: no vocabulary.
        OutOfMemoryForecast: the longest prompt does not fit in memory.
    """
    start = model.first_tokens
    encode = encode_with(model)
    asked = [(task, task.cases(encode)) for task in tasks]
    sizes = [[len(start) + len(case.prompt) + len(case.answer) for case in cases] for _, cases in asked]
    scores = []
    with progress_bar(f"{model.path.name}: recall, tokens", sum(map(sum, sizes))) as advance:
        for (task, cases), lengths in zip(asked, sizes, strict=True):
            answers = []
            with Session(model, n_ctx=max(lengths), n_threads=n_threads, n_outputs=1) as session:
                for case, length in zip(cases, lengths, strict=True):
                    session.clear()
                    answers.append(_answer(session, [*start, *case.prompt], case.answer))
                    advance(length)
            hits = tuple(hit for hit, _ in answers)
            scores.append(RetrievalScore(task, hits, sum(log_p for _, log_p in answers) / len(answers)))
    return scores


def _answer(session: Session, prompt: Sequence[int], answer: Sequence[int]) -> tuple[bool, float]:
    """Whether every token of an answer is the likeliest, and their mean log probability, nats."""
    logits = session.evaluate(prompt)
    hit, total = True, 0.0
    for place, token in enumerate(answer):
        if place:
            logits = session.evaluate([answer[place - 1]])
        hit &= int(logits.argmax()) == token
        total += float(log_softmax(logits[None])[0, token])
    return hit, total / len(answer)
