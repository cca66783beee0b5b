"""Perplexity and KL divergence of a model and its base on one text, on the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

import numpy as np
from numpy.typing import NDArray

from sb_edge.evaluate.perplexity import predictions, require_tokens, text_tokens
from sb_edge.runtime.session import Model
from sb_edge.util.errors import InferenceError
from sb_edge.util.logits import kl_divergence
from sb_edge.util.progress import progress_bar

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """A model and its base on one text.

    Attributes:
        model, base: file names.
        text: name of the text, or names of several.
        tokens: number of predicted tokens.
        context: maximum number of tokens before a predicted token.
        spikes: requested spike k of the model; None: the k stored in the file.
        perplexity: perplexity of the model.
        base_perplexity: perplexity of the base.
        ratio: `perplexity` over `base_perplexity`.
        ratio_error: standard error of `ratio`, from the differences per token.
        kl: KL(base || model), nats, mean over the tokens.
        top1: share of tokens, 0 to 1, for which both have the same most likely token.
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


def compare_quality(
    model: Model,
    base: Model,
    text: str,
    name: str,
    *,
    max_tokens: int,
    context: int,
    n_threads: int | None = None,
) -> Quality:
    """Evaluate a model and its base on the same chunks of a text.

    Each chunk has a new context, which begins with BOS where the vocabulary asks for it.

    Args:
        model, base: open GGUFs with the same vocabulary.
        text: text that neither model was trained on.
        name: name of the text.
        max_tokens: maximum number of tokens of the text.
        context: tokens per chunk, BOS included.
        n_threads: None: number of physical cores.

    Raises:
        InferenceError: no vocabulary, different vocabularies, or a text of fewer than two tokens.
    """
    begin = model.first_tokens
    tokens = text_tokens(model, text, max_tokens + len(begin))
    _require_same_vocabulary(model, base, text, tokens)
    require_tokens(tokens, 2, name)
    del tokens[: len(begin)]
    size = context - len(begin)
    chunks = [[*begin, *tokens[start : start + size]] for start in range(0, len(tokens), size)]
    columns: list[Floats] = []
    with progress_bar("evaluating model and base, tokens", len(tokens)) as advance:
        for chunk in chunks:
            if len(chunk) > 1:
                columns.append(_compare(model, base, chunk, n_threads))
            advance(len(chunk) - len(begin))
    nll, base_nll, kl, same = np.concatenate(columns, axis=1)
    ratio = math.exp(float((nll - base_nll).mean()))
    return Quality(
        model=model.path.name,
        base=base.path.name,
        text=name,
        tokens=len(nll),
        context=context,
        spikes=model.spikes,
        perplexity=math.exp(float(nll.mean())),
        base_perplexity=math.exp(float(base_nll.mean())),
        ratio=ratio,
        ratio_error=ratio * float((nll - base_nll).std()) / math.sqrt(len(nll)),
        kl=max(float(kl.mean()), 0.0),
        top1=float(same.mean()),
    )


def mean_quality(found: Sequence[Quality]) -> Quality:
    """Geometric means of perplexities and ratios over texts, means of `kl` and `top1`.

    Args:
        found: one model and base on at least one text.
    """
    if len(found) == 1:
        return found[0]
    ratio = geometric_mean([each.ratio for each in found])
    relative = math.hypot(*(each.ratio_error / each.ratio for each in found)) / len(found)
    return replace(
        found[0],
        text=", ".join(each.text for each in found),
        tokens=sum(each.tokens for each in found),
        perplexity=geometric_mean([each.perplexity for each in found]),
        base_perplexity=geometric_mean([each.base_perplexity for each in found]),
        ratio=ratio,
        ratio_error=ratio * relative,
        kl=fmean([each.kl for each in found]),
        top1=fmean([each.top1 for each in found]),
    )


def _compare(model: Model, base: Model, tokens: Sequence[int], n_threads: int | None) -> Floats:
    """[4, T - 1]: -log p by model and by base, KL, and top-1 agreement, for each token after the first."""
    parts: list[Floats] = []
    both = zip(
        predictions(base, tokens, n_threads=n_threads),
        predictions(model, tokens, n_threads=n_threads),
        strict=True,
    )
    for (expected, base_nll), (found, nll) in both:
        rows = len(nll)  # the last prediction of the text has no following token
        kl = kl_divergence(expected, found)[:rows]
        same = (expected.argmax(axis=1) == found.argmax(axis=1))[:rows]
        parts.append(np.stack([nll, base_nll, kl, same.astype(np.float64)]))
    return np.concatenate(parts, axis=1)


def _require_same_vocabulary(model: Model, base: Model, text: str, tokens: list[int]) -> None:
    if model.n_vocab != base.n_vocab or text_tokens(base, text, len(tokens)) != tokens:
        raise InferenceError(
            "has a different vocabulary from its base",
            path=model.path,
            found=f"{model.n_vocab} tokens",
            expected=f"the {base.n_vocab} tokens of {base.path.name}, and the same tokenization",
            hint="compare it with the model that it was made from",
        )
