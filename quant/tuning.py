"""What tunings of k and of dead zones share: texts, budgets, and the search for the least that is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sb_edge.runtime.session import Model
from sb_edge.util.errors import SpikeError

DEFAULT_BUDGET = 0.02
"""Share by which the perplexity of a text may rise."""

PROBE_TOKENS = 256
"""Tokens for the loss of a single change; divergences vary far less than perplexity."""

DEFAULT_TOKENS = 2048
MIN_TOKENS = 64
"""Fewer tell nothing about perplexity."""


@dataclass(frozen=True)
class Text:
    """The first tokens of a text.

    Attributes:
        name: the file's name without its folder, or "held-out".
        tokens: its tokens.

    Raises:
        SpikeError: fewer than `MIN_TOKENS` tokens.
    """

    name: str
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) < MIN_TOKENS:
            raise SpikeError(
                "the text is too short to tune on",
                path=self.name,
                found=f"{len(self.tokens)} tokens",
                expected=f"at least {MIN_TOKENS}, better a thousand",
            )


def cut_text(model: Path, text: str, name: str, max_tokens: int = DEFAULT_TOKENS) -> Text:
    """The first tokens of a text.

    Args:
        model: a GGUF with a vocabulary; its weights are not loaded.
        text: any text.
        name: for messages and results.
        max_tokens: Maximum number of tokens.

    Raises:
        InferenceError: the model has no vocabulary.
        SpikeError: fewer than `MIN_TOKENS` tokens.
    """
    with Model(model, vocab_only=True) as vocabulary:
        return Text(name, tuple(vocabulary.tokenize(text)[:max_tokens]))


class Measured(Protocol):
    """What `search` has to know of a measurement."""

    @property
    def k(self) -> float:
        """Where it was taken."""


M = TypeVar("M", bound=Measured)


def search(
    measure: Callable[[float], M],
    ks: Sequence[float],
    accept: Callable[[M], bool],
    halvings: int,
    *,
    in_a_row: int = 2,
) -> tuple[list[M], M | None]:
    """The first k that is good enough.

    Goes through `ks` until several in a row are accepted (one may be by luck), then halves the logarithm of
    the last step before them.

    Args:
        measure: takes a measurement at a k.
        ks: ascending or descending, > 0.
        accept: decides on a measurement; from some k on all are accepted, but for noise.
        halvings: Number of bisection steps.
        in_a_row: accepted ones that end the search.

    Returns:
        All measurements by k, and the chosen one; None if the last of `ks` is not accepted.
    """
    points: list[M] = []
    accepted = 0
    for k in ks:
        points.append(measure(k))
        accepted = accepted + 1 if accept(points[-1]) else 0
        if accepted == in_a_row:
            break
    if not accepted:
        return points, None
    best = points[-accepted]
    last = points[-accepted - 1].k if len(points) > accepted else best.k
    for _ in range(halvings if last != best.k else 0):
        point = measure(math.sqrt(last * best.k))
        points.append(point)
        if accept(point):
            best = point
        else:
            last = point.k
    return sorted(points, key=lambda point: point.k), best
