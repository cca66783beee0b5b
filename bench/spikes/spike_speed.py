"""Speed with spikes against without: the same weights, in turns, in one run."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb_edge.bench.rows.timing import Timing, summarize
from sb_edge.bench.speed.interleaved import Sample, require_memory_for_both, time_in_turns
from sb_edge.bench.speed.measure import TOKEN_SEED
from sb_edge.evaluate.spike_stats import engine_k
from sb_edge.gguf.reader import read_header
from sb_edge.memory.forecast import EngineSettings
from sb_edge.runtime.session import Model, Session


@dataclass(frozen=True)
class SpikeSpeed:
    """One kind of work with and without spikes.

    Attributes:
        label: llama-bench's words, "pp512" or "tg64".
        without, spiking: their timings, repetition by repetition side by side.
    """

    label: str
    without: Timing
    spiking: Timing

    @property
    def ratios(self) -> list[float]:
        """Speed with spikes over without, for every pair of neighbouring repetitions."""
        return [on / off for on, off in zip(self.spiking.samples_ts, self.without.samples_ts, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third of `ratios`."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third

    def to_json(self) -> dict[str, Any]:
        """Timings under llama-bench's names, and the ratio."""
        return {
            "label": self.label,
            "without": asdict(self.without),
            "spiking": asdict(self.spiking),
            "ratio": self.ratio,
            "ratio_quartiles": list(self.quartiles),
        }


def measure_spike_speed(
    path: Path,
    *,
    k: float | None = None,
    n_prompt: int = 512,
    n_gen: int = 64,
    repetitions: int = 10,
    n_threads: int | None = None,
) -> tuple[SpikeSpeed, SpikeSpeed]:
    """Time a prompt and the tokens decoded after it, in turns without and with spikes.

    Each side's weights are loaded as suits it: without spikes the engine may repack them for its own kernels.

    Args:
        path: the GGUF.
        k: as `sb_edge.evaluate.spike_stats.engine_k` takes it.
        n_prompt, n_gen: tokens.
        repetitions: pairs; the side that begins changes with each.
        n_threads: None: as `default_threads`.

    Returns:
        Prompt and decoding.

    Raises:
        GgufError, SpikeError, InferenceError: the model is damaged or does not fit.
        OutOfMemoryForecast: both sides will not fit in memory; nothing has been loaded.
    """
    rng = np.random.default_rng(TOKEN_SEED)
    header = read_header(path)
    k = engine_k(header, k)
    what = "the model, with spikes and without,"
    require_memory_for_both(header, EngineSettings(spikes=0), EngineSettings(spikes=k), n_prompt, n_gen, what)
    with Model(path, header=header, spikes=0) as plain, Model(path, header=header, spikes=k) as spiking:
        tokens = rng.integers(plain.n_vocab, size=n_prompt + n_gen).tolist()
        with (
            Session(plain, n_ctx=len(tokens), n_threads=n_threads, n_outputs=1) as without,
            Session(spiking, n_ctx=len(tokens), n_threads=n_threads, n_outputs=1) as coded,
        ):
            samples = time_in_turns(without, coded, tokens, n_prompt, repetitions, "with and without spikes")
    return (
        _compare(f"pp{n_prompt}", n_prompt, samples, 0),
        _compare(f"tg{n_gen} @ d{n_prompt}", n_gen, samples, 1),
    )


def _compare(label: str, n_tokens: int, samples: tuple[list[Sample], list[Sample]], part: int) -> SpikeSpeed:
    without, spiking = (summarize([pair[part] for pair in pairs], n_tokens) for pairs in samples)
    return SpikeSpeed(label, without, spiking)
