"""Interleaved speed with and without spikes on the same weights."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb_edge.arch.model_check import read_model
from sb_edge.bench.rows.timing import Timing, summarize
from sb_edge.bench.speed.interleaved import Sample, require_memory_for_both, time_interleaved
from sb_edge.bench.speed.measure import TOKEN_SEED
from sb_edge.evaluate.spike_stats import engine_k
from sb_edge.memory.forecast import EngineSettings
from sb_edge.runtime.session import Model
from sb_edge.util.output import json_fields


@dataclass(frozen=True)
class SpikeSpeed:
    """Speed of one kind of work with and without spikes.

    Attributes:
        label: llama-bench's label, for example "pp512" or "tg64".
        without, spiking: interleaved timings.
    """

    label: str
    without: Timing
    spiking: Timing

    @property
    def ratios(self) -> list[float]:
        """Speed with spikes over speed without, for every pair of repetitions."""
        return [on / off for on, off in zip(self.spiking.samples_ts, self.without.samples_ts, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of `ratios`."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third

    def to_json(self) -> dict[str, Any]:
        """All fields and the ratio; timings under llama-bench's names."""
        return json_fields(self) | {"ratio": self.ratio, "ratio_quartiles": list(self.quartiles)}


def measure_spike_speed(
    path: Path,
    *,
    k: float | None = None,
    n_prompt: int = 512,
    n_gen: int = 64,
    repetitions: int = 10,
    n_threads: int | None = None,
) -> tuple[SpikeSpeed, SpikeSpeed]:
    """Time a prompt and the tokens decoded after it, interleaved without and with spikes.

    The two sides have their own copy of the weights; without spikes the engine may repack them.

    Args:
        path: the GGUF.
        k: as in `sb_edge.evaluate.spike_stats.engine_k`.
        n_prompt, n_gen: number of prompt and decoded tokens.
        repetitions: number of pairs; the order alternates.
        n_threads: None: `default_threads`.

    Returns:
        Speeds of the prompt and of decoding.

    Raises:
        GgufError, SpikeError, InferenceError: see `Model` and `engine_k`.
        OutOfMemoryForecast: the two sides do not fit in memory; nothing was loaded.
    """
    rng = np.random.default_rng(TOKEN_SEED)
    header = read_model(path)
    k = engine_k(header, k)
    what = "the model, with spikes and without,"
    require_memory_for_both(header, EngineSettings(spikes=0), EngineSettings(spikes=k), n_prompt, n_gen, what)
    with Model(path, header=header, spikes=0) as plain, Model(path, header=header, spikes=k) as spiking:
        tokens = rng.integers(plain.n_vocab, size=n_prompt + n_gen).tolist()
        samples = time_interleaved(
            plain,
            spiking,
            tokens,
            n_prompt=n_prompt,
            repetitions=repetitions,
            n_threads=n_threads,
            title="with and without spikes",
        )
    return (
        _compare(f"pp{n_prompt}", n_prompt, samples, 0),
        _compare(f"tg{n_gen} @ d{n_prompt}", n_gen, samples, 1),
    )


def _compare(label: str, n_tokens: int, samples: tuple[list[Sample], list[Sample]], part: int) -> SpikeSpeed:
    without, spiking = (summarize([pair[part] for pair in pairs], n_tokens) for pairs in samples)
    return SpikeSpeed(label, without, spiking)
