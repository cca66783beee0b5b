"""How well a model predicts a text, beside the base that it was made from, on the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.evaluate.perplexity import divergences, predictions, require_tokens
from sb_edge.runtime.session import Model
from sb_edge.util.errors import InferenceError
from sb_edge.util.progress import progress_bar

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """A model and its base on one text.

    Attributes:
        model, base: the files' names.
        text: its name.
        tokens: predicted.
        context: tokens that a prediction may look back on, at most.
        spikes: k of the model's spikes as asked for; None: as its file says.
        perplexity: of the model.
        base_perplexity: of the base.
        ratio: the first over the second.
        ratio_error: standard error of `ratio`, from the tokens' differences.
        kl: KL(base || model), nats, mean over the tokens.
        top1: share of tokens, 0 to 1, for which both expect the same token most.
    """

    model: str
    base: str
    text: str
    tokens: int
    context: int
    spikes: float | None
    perplexity: float
    base_perplexity: float
    ratio: float
    ratio_error: float
    kl: float
    top1: float

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)


def compare_quality(
    model_path: Path,
    base_path: Path,
    text: str,
    name: str,
    *,
    max_tokens: int,
    context: int,
    spikes: float | None = None,
    n_threads: int | None = None,
) -> Quality:
    """Measure a model and its base on the same pieces of a text, each read afresh from its first token.

    Args:
        model_path, base_path: GGUFs with the same vocabulary.
        text: that neither was trained on.
        name: of the text.
        max_tokens: of it.
        context: tokens a piece.
        spikes: of the model, as `Model` takes it; the base has none.
        n_threads: None: the physical cores.

    Raises:
        GgufError, SpikeError: a file cannot be loaded, or has no spikes.
        InferenceError: no vocabulary, another one, or the text has fewer than two tokens.
    """
    with Model(model_path, spikes=spikes) as model, Model(base_path) as base:
        tokens = model.tokenize(text)[:max_tokens]
        _require_same_vocabulary(model, base, text, tokens)
        require_tokens(tokens, 2, name)
        pieces = [tokens[start : start + context] for start in range(0, len(tokens), context)]
        columns: list[Floats] = []
        with progress_bar("reading the text twice, tokens", len(tokens)) as advance:
            for piece in pieces:
                if len(piece) > 1:
                    columns.append(_compare(model, base, piece, n_threads))
                advance(len(piece))
    nll, base_nll, kl, same = np.concatenate(columns, axis=1)
    ratio = math.exp(float((nll - base_nll).mean()))
    return Quality(
        model=model_path.name,
        base=base_path.name,
        text=name,
        tokens=len(nll),
        context=context,
        spikes=spikes,
        perplexity=math.exp(float(nll.mean())),
        base_perplexity=math.exp(float(base_nll.mean())),
        ratio=ratio,
        ratio_error=ratio * float((nll - base_nll).std()) / math.sqrt(len(nll)),
        kl=max(float(kl.mean()), 0.0),
        top1=float(same.mean()),
    )


def _compare(model: Model, base: Model, tokens: Sequence[int], n_threads: int | None) -> Floats:
    """[4, T - 1]: -log p of each token after the first by model and base, KL, and whether the best agree."""
    parts: list[Floats] = []
    both = zip(
        predictions(base, tokens, n_threads=n_threads),
        predictions(model, tokens, n_threads=n_threads),
        strict=True,
    )
    for (expected, base_nll), (found, nll) in both:
        rows = len(nll)  # the last piece's last prediction has no token to be held against
        kl = divergences(expected, found)[:rows]
        same = (expected.argmax(axis=1) == found.argmax(axis=1))[:rows]
        parts.append(np.stack([nll, base_nll, kl, same.astype(np.float64)]))
    return np.concatenate(parts, axis=1)


def _require_same_vocabulary(model: Model, base: Model, text: str, tokens: Sequence[int]) -> None:
    if model.n_vocab != base.n_vocab or base.tokenize(text)[: len(tokens)] != list(tokens):
        raise InferenceError(
            "has another vocabulary than its base",
            path=model.path,
            found=f"{model.n_vocab} tokens",
            expected=f"the {base.n_vocab} of {base.path.name}, and the same cuts",
            hint="compare with the base that it was made from",
        )
