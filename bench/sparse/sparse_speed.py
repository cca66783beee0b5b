"""Decoding with and without a model's sparse layout: interleaved speed, perplexity, skipped channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.arch.sparse_plan import check_sparse
from sb_edge.bench.rows.ratios import Ratio, speed_ratio
from sb_edge.bench.rows.timing import Timing, summarize
from sb_edge.bench.speed.interleaved import require_memory_for_both, time_interleaved
from sb_edge.evaluate.perplexity import require_tokens, token_losses
from sb_edge.gguf.reader import read_header
from sb_edge.memory.forecast import EngineSettings
from sb_edge.runtime.session import Model
from sb_edge.runtime.sparse_counters import SparseCounts, count_products
from sb_edge.util.errors import SparseError
from sb_edge.util.output import json_fields


@dataclass(frozen=True)
class SparseSpeed:
    """Speed and perplexity of a model with and without its sparse layout.

    Attributes:
        model: file name without extension.
        text: name of the decoded text.
        label: llama-bench's label, for example "tg64 @ d64".
        dense, sparse: interleaved timings of decoding.
        ratio: sparse speed over dense speed.
        tokens: number of predicted tokens.
        perplexity_dense: perplexity with dense products, decoding token by token.
        perplexity_ratio: perplexity with sparse products over `perplexity_dense`.
        counts: the engine's counts of products and channels over these tokens.
    """

    model: str
    text: str
    label: str
    dense: Timing
    sparse: Timing
    ratio: Ratio
    tokens: int
    perplexity_dense: float
    perplexity_ratio: float
    counts: SparseCounts

    def to_json(self) -> dict[str, Any]:
        """All fields and the counted shares; timings under llama-bench's names."""
        return json_fields(self) | json_fields(self.counts, "silent_share", "dense_share")


def measure_sparse_speed(
    path: Path,
    text: str,
    *,
    name: str,
    n_prompt: int = 64,
    n_gen: int = 64,
    repetitions: int = 10,
    max_tokens: int = 1024,
    n_threads: int | None = None,
) -> SparseSpeed:
    """Time interleaved decoding, and evaluate a text token by token, with and without the layout.

    Args:
        path: GGUF with a sparse layout.
        text: text to decode; the share of silent channels depends on it.
        name: name of the text.
        n_prompt, n_gen: number of tokens before the timed ones, and of timed tokens.
        repetitions: number of pairs; the order alternates.
        max_tokens: maximum number of tokens for the perplexities.
        n_threads: None: `default_threads`.

    Raises:
        SparseError: the model has no sparse layout.
        GgufError, InferenceError: the model is damaged, has no vocabulary, or the text is too short.
        OutOfMemoryForecast: the two sides do not fit in memory; nothing was loaded.
    """
    header = read_header(path)
    if check_sparse(header) is None:
        raise SparseError("has no sparse layout", path=path, hint="make one with `sb-edge sparsify`")
    what = "the model, with its sparse layout and without,"
    require_memory_for_both(header, EngineSettings(sparse=False), EngineSettings(), n_prompt, n_gen, what)
    with Model(path, header=header, sparse=False) as dense, Model(path, header=header) as sparse:
        tokens = dense.tokenize(text)[: max(max_tokens, n_prompt + n_gen)]
        require_tokens(tokens, n_prompt + n_gen, name, "use a longer --text or a smaller --n-prompt")
        samples = time_interleaved(
            dense,
            sparse,
            tokens[: n_prompt + n_gen],
            n_prompt=n_prompt,
            repetitions=repetitions,
            n_threads=n_threads,
            title="with and without the layout",
        )
        timings = [summarize([decode for _, decode in side], n_gen) for side in samples]
        tokens = tokens[:max_tokens]
        reference = token_losses(dense, tokens, n_batch=1, n_threads=n_threads).mean()
        with count_products() as counts:
            losses = token_losses(sparse, tokens, n_batch=1, n_threads=n_threads).mean()
            counted = counts()
    return SparseSpeed(
        model=path.stem,
        text=name,
        label=f"tg{n_gen} @ d{n_prompt}",
        dense=timings[0],
        sparse=timings[1],
        ratio=speed_ratio(timings[1].samples_ts, timings[0].samples_ts, paired=True),
        tokens=len(tokens) - 1,
        perplexity_dense=math.exp(reference),
        perplexity_ratio=math.exp(losses - reference),
        counts=counted,
    )
