"""Perplexity of a text, from the engine."""

from __future__ import annotations

import importlib.resources
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb_edge.errors import InferenceError
from sb_edge.runtime.session import Model, Session


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `tokens` tokens, each given all before it."""

    value: float
    tokens: int


def held_out_text() -> str:
    """A short English text written for this project, on which nothing is trained or chosen."""
    return (importlib.resources.files("sb_edge.bench") / "data" / "held_out.txt").read_text(encoding="utf-8")


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


def perplexity(
    model: Model, text: str, *, n_threads: int | None = None, max_tokens: int = 2048
) -> Perplexity:
    """The perplexity of the first `max_tokens` tokens of a text in one context; its first token is given.

    Raises:
        InferenceError: the model has no vocabulary, or the text has fewer than two tokens.
    """
    tokens = model.tokenize(text)[:max_tokens]
    if len(tokens) < 2:
        raise InferenceError(
            "the text is too short", path=model.path, found=f"{len(tokens)} tokens", expected="at least 2"
        )
    with Session(model, n_ctx=max(len(tokens), 16), n_threads=n_threads) as session:
        logits = session.evaluate(tokens, all_logits=True)[:-1].astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    log_likelihood = logits[np.arange(len(tokens) - 1), tokens[1:]] - log_sum
    return Perplexity(math.exp(-float(log_likelihood.mean())), len(tokens) - 1)
