"""Passkey retrieval: a number, then text of a given length, then a question for the number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb_edge.runtime.session import Model, Session
from sb_edge.util.progress import Advance

_DIGITS = 5
_BEFORE = (
    "A pass key is told in this text. Remember it.\n\n"
    "The pass key is {key}. Remember: {key} is the pass key.\n\n"
)
_AFTER = "\n\nWhat is the pass key? The pass key is"
_FILLER = (
    "The road runs along the river.",
    "A boat lies in the reeds.",
    "Behind the hill there is a field of barley.",
    "The wind has turned to the west.",
    "Someone has left a gate open.",
    "Two herons stand in the shallow water.",
    "The bridge is made of old grey stone.",
    "Smoke rises from a chimney far away.",
    "In the evening the bells can be heard.",
    "A path leads through the wood to the mill.",
)
_SEED = 20261122


@dataclass(frozen=True)
class PasskeyScore:
    """Share of numbers that were retrieved.

    Attributes:
        distance: tokens between the number and the question.
        trials: number of prompts.
        found: share of prompts, 0 to 1, that greedy decoding continues with the whole number.
    """

    distance: int
    trials: int
    found: float


def retrieve_passkeys(
    model: Model,
    passkeys: Sequence[tuple[int, int]],
    *,
    n_threads: int | None = None,
    advance: Advance,
) -> list[PasskeyScore]:
    """Run passkey retrieval.

    Args:
        model: model with a vocabulary.
        passkeys: pairs of distance (tokens) and number of prompts.
        n_threads: None: `default_threads`.
        advance: called with the number of evaluated tokens.

    Raises:
        InferenceError: no vocabulary.
        OutOfMemoryForecast: the longest prompt does not fit in memory.
    """
    scores = []
    for distance, trials in passkeys:
        prompts = [_prompt(model, distance, trial) for trial in range(trials)]
        longest = max(len(prompt) + len(answer) for prompt, answer in prompts)
        found = 0
        with Session(model, n_ctx=longest, n_threads=n_threads, n_outputs=1) as session:
            for prompt, answer in prompts:
                session.clear()
                logits = session.evaluate(prompt)
                found += _answers(session, logits, answer)
                advance(len(prompt))
        scores.append(PasskeyScore(distance, trials, found / trials))
    return scores


def prompt_tokens(distance: int) -> int:
    """Approximate number of tokens of a prompt."""
    return distance + 64


def _prompt(model: Model, distance: int, trial: int) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of its answer."""
    rng = np.random.default_rng((_SEED, trial))
    key = "".join(map(str, rng.integers(10, size=_DIGITS)))
    before = model.tokenize(_BEFORE.format(key=key))
    text = before[-1]
    between: list[int] = []
    while len(between) < distance:
        sentences = [_FILLER[place] for place in rng.permutation(len(_FILLER))]
        between += model.tokenize(" ".join(sentences) + "\n", after=text)
    after = model.tokenize(_AFTER, after=text)
    answer = model.tokenize(f"{_AFTER} {key}", after=text)[len(after) :]
    return [*before, *between[:distance], *after], answer


def _answers(session: Session, logits: np.ndarray, answer: Sequence[int]) -> bool:
    """Whether greedy decoding continues with these tokens."""
    for token in answer:
        if int(logits.argmax()) != token:
            return False
        logits = session.evaluate([token])
    return True
