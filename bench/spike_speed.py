"""Speed with spikes against without: the same weights, in turns, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sb_edge.bench.measure import TOKEN_SEED
from sb_edge.bench.spikes import engine_k
from sb_edge.bench.stats import Timing, summarize
from sb_edge.gguf_reader import GgufHeader, read_header
from sb_edge.memory import EngineSettings, MemoryForecast, forecast
from sb_edge.memory_check import Alternative, Room, refuse_shortage
from sb_edge.progress import progress_bar
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
        k: as `sb_edge.bench.spikes.engine_k` takes it.
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
    _require_memory(header, k, n_prompt, n_gen)
    with Model(path, header=header, spikes=0) as plain, Model(path, header=header, spikes=k) as spiking:
        tokens = rng.integers(plain.n_vocab, size=n_prompt + n_gen).tolist()
        samples: dict[str, list[tuple[int, int]]] = {"without": [], "spiking": []}
        with (
            Session(plain, n_ctx=len(tokens), n_threads=n_threads, n_outputs=1) as without,
            Session(spiking, n_ctx=len(tokens), n_threads=n_threads, n_outputs=1) as coded,
        ):
            sides = [("without", without), ("spiking", coded)]
            for _, session in sides:  # pages in weights and fills caches of kernels
                _time(session, tokens, n_prompt)
            with progress_bar("with and without spikes", repetitions) as advance:
                for _ in range(repetitions):
                    for name, session in sides:
                        samples[name].append(_time(session, tokens, n_prompt))
                    sides.reverse()
                    advance(1)
    return (
        _compare(f"pp{n_prompt}", n_prompt, samples, 0),
        _compare(f"tg{n_gen} @ d{n_prompt}", n_gen, samples, 1),
    )


def _require_memory(header: GgufHeader, k: float | None, n_prompt: int, n_gen: int) -> None:
    """Both sides are loaded at once; they share the pages of the file."""

    def need(prompt: int) -> MemoryForecast:
        plain, spiking = (
            forecast(header, prompt + n_gen, EngineSettings(spikes=spikes)) for spikes in (0, k)
        )
        beside = spiking.beyond_weights().required + spiking.repacked + spiking.engine
        return replace(plain, extra=beside)

    def shorter() -> Iterator[Alternative]:
        prompt = n_prompt // 2
        while prompt:
            yield f"--n-prompt {prompt}", need(prompt)
            prompt //= 2

    refuse_shortage(
        need(n_prompt),
        Room.now(),
        "the model, with spikes and without,",
        path=header.files[0],
        alternatives=(shorter(),),
    )


def _time(session: Session, tokens: list[int], n_prompt: int) -> tuple[int, int]:
    """Nanoseconds of the prompt, and of the tokens after it one by one."""
    session.clear()
    start = time.perf_counter_ns()
    session.evaluate(tokens[:n_prompt])
    middle = time.perf_counter_ns()
    for token in tokens[n_prompt:]:
        session.evaluate([token])
    return middle - start, time.perf_counter_ns() - middle


def _compare(label: str, n_tokens: int, samples: dict[str, list[tuple[int, int]]], part: int) -> SpikeSpeed:
    timings = {name: summarize([pair[part] for pair in pairs], n_tokens) for name, pairs in samples.items()}
    return SpikeSpeed(label, timings["without"], timings["spiking"])
