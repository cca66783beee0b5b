"""Perplexity of a text, from the engine."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError

PIECE = 128
"""Tokens evaluated at once where all logits are held: a large vocabulary's take much memory."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `tokens` tokens, each given all before it."""

    value: float
    tokens: int


def held_out_text() -> str:
    """A short English text written for this project, on which nothing is trained or chosen."""
    return _built_in("held_out.txt")


def evaluation_text() -> str:
    """Twenty-two texts written for this project: essays, documentation, instructions, stories, letters.

    Nothing is trained on them. Ten times as long as `held_out_text`, for figures to a percent.
    """
    return _built_in("evaluation.txt")


def _built_in(name: str) -> str:
    return (importlib.resources.files("sb_edge.evaluate") / "data" / name).read_text(encoding="utf-8")


def read_text(file: Path | None) -> tuple[str, str]:
    """A UTF-8 text file and its name without the folder; without a file, `held_out_text` as "held-out".

    Raises:
        InferenceError: it is not UTF-8.
        OSError: it cannot be read.
    """
    if file is None:
        return held_out_text(), "held-out"
    try:
        return file.read_text(encoding="utf-8"), file.name
    except UnicodeDecodeError as error:
        raise InferenceError("is not UTF-8 text", path=file, found=f"byte {error.start}") from None


def require_tokens(tokens: Sequence[int], least: int, where: Path | str, hint: str | None = None) -> None:
    """Refuse a text of fewer tokens.

    Raises:
        InferenceError: what was found in `where`, a file or the name of a text.
    """
    if len(tokens) < least:
        raise InferenceError(
            "the text is too short",
            path=where,
            found=f"{len(tokens)} tokens",
            expected=f"at least {least}",
            hint=hint,
        )


def perplexity(
    model: Model, text: str, *, n_threads: int | None = None, max_tokens: int = 2048
) -> Perplexity:
    """The perplexity of the first `max_tokens` tokens of a text in one context; its first token is given.

    Raises:
        InferenceError: the model has no vocabulary, or the text has fewer than two tokens.
    """
    tokens = model.tokenize(text)[:max_tokens]
    require_tokens(tokens, 2, model.path)
    found = predictions(model, tokens, n_batch=512, n_threads=n_threads, dtype=np.float64)
    nll = np.concatenate([nll for _, nll in found])
    return Perplexity(math.exp(nll.mean()), len(nll))


def predictions(
    model: Model,
    tokens: Sequence[int],
    *,
    n_batch: int = PIECE,
    n_threads: int | None = None,
    dtype: type[np.floating] = np.float32,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.float64]]]:
    """What a model expects after every token of a text, in one context, and how it is surprised.

    Args:
        model: with or without spikes.
        tokens: of the text.
        n_batch: tokens evaluated at once; figures depend on it, as the engine's kernels do.
        n_threads: None: as `default_threads`.
        dtype: of the log-probabilities.

    Yields:
        For every piece of n <= `n_batch` tokens: log-probabilities of the next token [n, n_vocab], and -log p
        of the token that did follow [n], in the last piece [n - 1].

    Raises:
        InferenceError: no tokens, or one outside the vocabulary.
    """
    at = 0
    for logits in evaluate(model, tokens, n_batch=n_batch, n_threads=n_threads):
        rows: NDArray[np.floating] = logits.astype(dtype, copy=False)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        following = np.array(tokens[at + 1 : at + 1 + len(rows)], dtype=np.int64)
        at += len(rows)
        yield rows, -rows[np.arange(len(following)), following].astype(np.float64)


def divergences(reference: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """KL(reference || other) of each row, [n], nats; rounding may leave it just below 0.

    Args:
        reference, other: log-probabilities, [n, n_vocab].
    """
    kl: NDArray[np.float64] = (np.exp(reference) * (reference - other)).sum(axis=1, dtype=np.float64)
    return kl


def token_losses(
    model: Model, tokens: Sequence[int], *, n_batch: int = PIECE, n_threads: int | None = None
) -> NDArray[np.float64]:
    """Negative log-likelihood of every token but the first, [T - 1], nats.

    Args and errors: as `predictions`. With `n_batch` 1 the engine decodes token by token.
    """
    found = predictions(model, tokens, n_batch=n_batch, n_threads=n_threads)
    return np.concatenate([nll for _, nll in found])


def evaluate(
    model: Model, tokens: Sequence[int], *, n_batch: int = PIECE, n_threads: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """The logits after every token of a text, in one context, [n <= `n_batch`, n_vocab] at a time.

    Raises:
        InferenceError: no tokens, or one outside the vocabulary.
    """
    with Session(model, n_ctx=max(len(tokens), 16), n_batch=n_batch, n_threads=n_threads) as session:
        for start in range(0, max(len(tokens), 1), n_batch):
            yield session.evaluate(tokens[start : start + n_batch], all_logits=True)
