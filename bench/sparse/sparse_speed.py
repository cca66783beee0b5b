"""Decoding with a model's sparse layout against without: speed in turns, perplexity, and what was skipped."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sb_edge.arch.sparse_plan import check_sparse
from sb_edge.bench.rows.ratios import Ratio, speed_ratio
from sb_edge.bench.rows.timing import Timing, summarize
from sb_edge.bench.speed.interleaved import require_memory_for_both, time_in_turns
from sb_edge.evaluate.perplexity import require_tokens, token_losses
from sb_edge.gguf.reader import read_header
from sb_edge.memory.forecast import EngineSettings
from sb_edge.runtime.session import Model, Session
from sb_edge.runtime.sparse_counters import SparseCounts, count_products
from sb_edge.util.errors import SparseError


@dataclass(frozen=True)
class SparseSpeed:
    """A model with a sparse layout, with and without it.

    Attributes:
        model: the file's name.
        text: whose tokens were decoded.
        label: llama-bench's words, "tg64 @ d64".
        dense, sparse: timings of decoding, repetition by repetition side by side.
        ratio: of the speeds, sparse over dense.
        tokens: predicted ones.
        perplexity: of the dense product, token by token.
        perplexity_ratio: of the sparse one over that.
        counts: of the engine, over those tokens.
    """

    model: str
    text: str
    label: str
    dense: Timing
    sparse: Timing
    ratio: Ratio
    tokens: int
    perplexity: float
    perplexity_ratio: float
    counts: SparseCounts

    def document(self) -> dict[str, Any]:
        """For JSON; timings under llama-bench's names."""
        return {
            "model": self.model,
            "text": self.text,
            "label": self.label,
            "dense": asdict(self.dense),
            "sparse": asdict(self.sparse),
            "ratio": asdict(self.ratio),
            "tokens": self.tokens,
            "perplexity_dense": self.perplexity,
            "perplexity_ratio": self.perplexity_ratio,
            "silent_share": self.counts.silent_share,
            "dense_share": self.counts.dense_share,
            "counts": asdict(self.counts),
        }


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
    """Time decoding in turns, and evaluate a text token by token both ways.

    Args:
        path: a GGUF with a sparse layout.
        text: what is decoded: how many channels are silent depends on it.
        name: of the text.
        n_prompt, n_gen: tokens of it before the timed ones, and those.
        repetitions: pairs; the side that begins changes with each.
        max_tokens: of the text, for the perplexities.
        n_threads: None: as `default_threads`.

    Raises:
        SparseError: the model has no sparse layout.
        GgufError, InferenceError: the model is damaged, has no vocabulary, or the text is too short.
        OutOfMemoryForecast: both sides will not fit in memory; nothing has been loaded.
    """
    header = read_header(path)
    if check_sparse(header) is None:
        raise SparseError(
            "has no sparse layout", path=path, hint="make one by `sb-edge quantize ... --sparse-layout`"
        )
    what = "the model, with its sparse layout and without,"
    require_memory_for_both(header, EngineSettings(sparse=False), EngineSettings(), n_prompt, n_gen, what)
    with Model(path, header=header, sparse=False) as dense, Model(path, header=header) as sparse:
        tokens = dense.tokenize(text)[: max(max_tokens, n_prompt + n_gen)]
        require_tokens(tokens, n_prompt + n_gen, name, "give a longer --text or a smaller --n-prompt")
        timed = tokens[: n_prompt + n_gen]
        with (
            Session(dense, n_ctx=len(timed), n_threads=n_threads, n_outputs=1) as without,
            Session(sparse, n_ctx=len(timed), n_threads=n_threads, n_outputs=1) as skipping,
        ):
            samples = time_in_turns(
                without, skipping, timed, n_prompt, repetitions, "with and without the layout"
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
        perplexity=math.exp(reference),
        perplexity_ratio=math.exp(losses - reference),
        counts=counted,
    )
