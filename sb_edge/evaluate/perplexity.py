"""Perplexity of a text on the engine, and the texts of this project."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sb_edge.runtime.session import Model, OnTensor, Session
from sb_edge.util.errors import InferenceError
from sb_edge.util.input_files import read_text_input
from sb_edge.util.logits import log_softmax

KINDS = ("prose", "technical", "code", "dialogue", "tables")
"""Kinds of evaluation text."""

_CUT_TOKENS = 256  # more than the cut at the end of a piece can change

EVALUATION_CHUNK = 128
"""Tokens evaluated at once; limits the memory for logits of a large vocabulary."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `tokens` predicted tokens."""

    value: float
    tokens: int


def held_out_text() -> str:
    """A short English text of this project, excluded from training and tuning."""
    return built_in("held_out.txt")


def evaluation_texts() -> dict[str, str]:
    """Texts of this project by kind, each of 3000 tokens or more; excluded from training."""
    return {kind: built_in(f"{kind}.txt") for kind in KINDS}


def built_in(name: str) -> str:
    """A data file of this folder."""
    return (importlib.resources.files("sb_edge.evaluate") / "data" / name).read_text(encoding="utf-8")


def read_text(file: Path | None) -> tuple[str, str]:
    """Read a UTF-8 text file; return the text and the file name. None: `held_out_text` and "held-out".

    Raises:
        InferenceError: not a regular file, or not UTF-8.
        OSError: the file cannot be read.
    """
    if file is None:
        return held_out_text(), "held-out"
    return read_text_input(file, InferenceError), file.name


def text_tokens(model: Model, text: str, max_tokens: int, *, parse_special: bool = False) -> list[int]:
    """The first tokens of a text to measure on, BOS included, of which no more than needed is read.

    Args:
        model: has the vocabulary.
        text: any text.
        max_tokens: Maximum number of tokens.
        parse_special: read control tokens that the text spells out as themselves.

    Raises:
        InferenceError: the model has no vocabulary.
    """
    size = 16 * max_tokens + 1024
    while True:
        tokens = model.tokenize(text[:size], parse_special=parse_special)
        # The end of a piece may be cut unlike the whole text.
        if size >= len(text) or len(tokens) >= max_tokens + _CUT_TOKENS:
            return tokens[:max_tokens]
        size *= 2


def require_tokens(tokens: Sequence[int], least: int, where: Path | str, hint: str | None = None) -> None:
    """Check that a text has at least `least` tokens.

    Args:
        tokens: the text.
        least: minimum number of tokens.
        where: file or name of the text, for the error.
        hint: advice for the error.

    Raises:
        InferenceError: the text has fewer tokens.
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
    """Perplexity of the first `max_tokens` tokens of a text in one context, without the first token.

    Raises:
        InferenceError: the model has no vocabulary, or the text has fewer than two tokens.
    """
    tokens = text_tokens(model, text, max_tokens)
    require_tokens(tokens, 2, model.path)
    found = predictions(model, tokens, n_batch=512, n_threads=n_threads, dtype=np.float64)
    nll = np.concatenate([nll for _, nll in found])
    return Perplexity(math.exp(nll.mean()), len(nll))


def predictions(
    model: Model,
    tokens: Sequence[int],
    *,
    n_batch: int = EVALUATION_CHUNK,
    n_threads: int | None = None,
    dtype: type[np.floating] = np.float32,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.float64]]]:
    """Predictions after every token of a text, in one context.

    Args:
        model: model with or without spikes.
        tokens: the text.
        n_batch: tokens evaluated at once; results depend on it because the engine's kernels do.
        n_threads: None: `default_threads`.
        dtype: type of the log-probabilities.

    Yields:
        For every chunk of n <= `n_batch` tokens: log-probabilities of the next token [n, n_vocab], and -log p
        of the token that follows [n], in the last chunk [n - 1].

    Raises:
        InferenceError: no tokens, or one outside the vocabulary.
    """
    at = 0
    for logits in evaluate(model, tokens, n_batch=n_batch, n_threads=n_threads):
        rows = log_softmax(logits, dtype)
        following = np.array(tokens[at + 1 : at + 1 + len(rows)], dtype=np.int64)
        at += len(rows)
        yield rows, -rows[np.arange(len(following)), following].astype(np.float64)


def token_losses(
    model: Model, tokens: Sequence[int], *, n_batch: int = EVALUATION_CHUNK, n_threads: int | None = None
) -> NDArray[np.float64]:
    """Negative log-likelihood of every token but the first, [T - 1], nats.

    Arguments and errors: see `predictions`. With `n_batch` 1 the engine decodes token by token.
    """
    found = predictions(model, tokens, n_batch=n_batch, n_threads=n_threads)
    return np.concatenate([nll for _, nll in found])


def evaluate(
    model: Model,
    tokens: Sequence[int],
    *,
    n_batch: int = EVALUATION_CHUNK,
    n_threads: int | None = None,
    on_tensor: OnTensor | None = None,
    tensor_filter: str | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Logits after every token of a text, in one context, in chunks [n <= `n_batch`, n_vocab].

    Args:
        model, tokens, n_batch, n_threads: as in `predictions`.
        on_tensor, tensor_filter: as in `Session`.

    Raises:
        InferenceError: no tokens, or one outside the vocabulary.
    """
    with Session(
        model,
        n_ctx=max(len(tokens), 16),
        n_batch=n_batch,
        n_threads=n_threads,
        on_tensor=on_tensor,
        tensor_filter=tensor_filter,
    ) as session:
        for start in range(0, max(len(tokens), 1), n_batch):
            yield session.evaluate(tokens[start : start + n_batch], all_logits=True)
