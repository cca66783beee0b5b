"""Random edits of a prompt: the server answers from its prompt cache as it answers without it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from running import RunningServer, running_server

from sb_edge.util.progress import progress_bar

SETTINGS: dict[str, list[str]] = {
    "usual": [],
    "swa-full": ["--swa-full"],
    "small batches": ["-b", "64", "-ub", "32"],
}
NEAR = 0.02
"""Difference of two logits below which rounding may decide which is the best."""

N_PREDICT = 3
_N_PROBS = 40
_DIVISIONS = ("1", "33", "128")  # tokens of a micro-batch


@dataclass(frozen=True)
class Difference:
    """Answers that differ at a token.

    Attributes:
        prompt: token ids.
        cached, fresh: tokens of the answer with and without the prompt cache.
        margin: log probability of the best token over the other answer's, without the cache.
        rounding: largest change of the margin if the prompt is read in other micro-batches.
    """

    prompt: tuple[int, ...]
    cached: tuple[int, ...]
    fresh: tuple[int, ...]
    margin: float
    rounding: float

    def __str__(self) -> str:
        return f"{len(self.prompt)} tokens: margin {self.margin:.4f}, rounding {self.rounding:.4f}"

    @property
    def is_rounding(self) -> bool:
        """Whether another division of the prompt, without any cache, explains it."""
        return self.margin <= max(NEAR, self.rounding)


def edited_prompts(n_vocab: int, n_edits: int, seed: int, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Prompts that share beginnings with those before them, as conversations do that are edited and resent.

    Args:
        n_vocab: token ids are below it.
        n_edits: number of prompts.
        seed: random seed.
        lengths: sizes of new parts, tokens.
    """
    rng = random.Random(seed)

    def fresh(n: int) -> list[int]:
        return [rng.randrange(n_vocab) for _ in range(n)]

    longest = 2 * max(lengths)
    history = [fresh(5)]
    for _ in range(n_edits):
        prompt = list(rng.choice(history[-6:]))
        match rng.randrange(7):
            case 0:
                prompt += fresh(rng.choice(lengths))
            case 1:
                prompt = prompt[: rng.randint(1, len(prompt))]
            case 2:
                prompt[rng.randrange(len(prompt))] = rng.randrange(n_vocab)
            case 3:
                prompt = prompt[: rng.randint(1, len(prompt))] + fresh(rng.choice(lengths))
            case 4:
                prompt = [rng.randrange(n_vocab), *prompt[1:]]
            case 5:
                prompt = fresh(rng.choice(lengths))
        prompt = prompt[:longest]
        history.append(prompt)
        yield prompt


def _answer(server: RunningServer, prompt: list[int], is_cached: bool) -> list[int]:
    question = {"prompt": prompt, "n_predict": N_PREDICT, "temperature": 0, "ignore_eos": True}
    answer = server.ask("/completion", question | {"cache_prompt": is_cached, "return_tokens": True})
    return list(answer["tokens"])


def _margin(server: RunningServer, tokens: list[int], best: int, other: int) -> float:
    """Log probability of a next token over another's; infinity if the server gives none for one of them."""
    question = {"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": _N_PROBS, "ignore_eos": True}
    entries = server.ask("/completion", question | {"cache_prompt": False}).get("completion_probabilities")
    found = {each["id"]: each["logprob"] for each in entries[0]["top_logprobs"]} if entries else {}
    return found[best] - found[other] if best in found and other in found else math.inf


def differences(
    model: Path, options: Sequence[str], n_vocab: int, n_edits: int, lengths: Sequence[int], seed: int = 1
) -> list[Difference]:
    """Ask two servers about the same prompts, one with its prompt cache, one without."""
    found: list[Found] = []
    usual = ["-t", "1", "-np", "1", *options]
    with (
        running_server(model, usual) as with_cache,
        running_server(model, usual) as without,
        progress_bar("edits", n_edits) as advance,
    ):
        for prompt in edited_prompts(n_vocab, n_edits, seed, lengths):
            cached, fresh = _answer(with_cache, prompt, True), _answer(without, prompt, False)
            if cached != fresh:
                at = next(i for i, (one, other) in enumerate(zip(cached, fresh, strict=True)) if one != other)
                found.append((prompt, cached, fresh, at))
            advance(1)
    divisions = [[], *(["-ub", size] for size in _DIVISIONS)] if found else []
    margins = [_margins(model, [*usual, *more], found) for more in divisions]
    return [
        Difference(tuple(prompt), tuple(cached), tuple(fresh), first, max(abs(first - one) for one in others))
        for (prompt, cached, fresh, _), first, *others in zip(found, *margins, strict=True)
    ]


Found = tuple[list[int], list[int], list[int], int]
"""Prompt, the two answers, and where they part."""


def _margins(model: Path, options: Sequence[str], found: list[Found]) -> list[float]:
    """The margin of each difference, on a server without the cache."""
    with running_server(model, options) as server:
        return [
            _margin(server, [*prompt, *fresh[:at]], fresh[at], cached[at])
            for prompt, cached, fresh, at in found
        ]
