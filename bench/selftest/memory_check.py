"""The memory forecast against what processes of their own take."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sb_edge.bench.speed.measure import TOKEN_SEED
from sb_edge.bench.speed.plan import BenchModel
from sb_edge.gguf.reader import read_header
from sb_edge.memory.check import SMALLER_TYPE, require_memory
from sb_edge.memory.forecast import EngineSettings, MemoryForecast, forecast
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model, Session
from sb_edge.system.cpu import default_threads
from sb_edge.util.errors import InferenceError
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class Growth:
    """What a process with one model and one context took, bytes.

    Attributes:
        resident: by which its resident memory grew since the engine was loaded.
        kv, state: of the context, as the engine reports them (to 0.01 MiB).
    """

    resident: int
    kv: int
    state: int


@dataclass(frozen=True)
class MemoryCase:
    """A model with a context of `n_ctx` tokens, what is forecast for it and what it took."""

    model: str
    n_ctx: int
    settings: EngineSettings
    expected: MemoryForecast
    measured: Growth

    @property
    def ratio(self) -> float:
        """Forecast over measured."""
        return self.expected.total / self.measured.resident

    def to_json(self) -> dict[str, Any]:
        """Sizes in bytes."""
        settings = self.settings
        return {
            "model": self.model,
            "n_ctx": self.n_ctx,
            "type_k": settings.type_k,
            "type_v": settings.type_v,
            "flash_attn": settings.flash_attn,
            "spikes": settings.spikes,
            "forecast": {**asdict(self.expected), "total": self.expected.total},
            "measured": asdict(self.measured),
            "ratio": self.ratio,
        }


def compare_memory(
    models: Sequence[BenchModel],
    contexts: Sequence[int],
    settings: Sequence[EngineSettings],
    *,
    n_prompt: int,
    n_threads: int | None = None,
) -> list[MemoryCase]:
    """Forecast every model with every context and settings, then measure each in a process of its own.

    Args:
        models: what to load.
        contexts: tokens.
        settings: of one sequence, `n_outputs` 1.
        n_prompt: tokens to evaluate, or as many as the context takes. More than the engine computes
            at once use all of its buffers.
        n_threads: None: as `default_threads`.

    Raises:
        OutOfMemoryForecast: one of them will not fit in memory; nothing has been loaded.
        GgufError, SpikeError, InferenceError: a model is damaged, or does not take the settings.
    """
    threads = n_threads or default_threads()
    planned = []
    for model in models:
        header = read_header(model.path)
        for n_ctx in contexts:
            for each in settings:
                kv_option = f"--type-k {SMALLER_TYPE} --type-v"
                require_memory(header, n_ctx, each, context_option="--depths", kv_option=kv_option)
                planned.append((model, n_ctx, each, forecast(header, n_ctx, each)))
    found = []
    with progress_bar("memory", len(planned)) as advance:
        for model, n_ctx, each, expected in planned:
            measured = _in_own_process(model.path, n_ctx, each, n_prompt, threads)
            found.append(MemoryCase(model.name, n_ctx, each, expected, measured))
            advance(1)
    return found


def _in_own_process(
    path: Path, n_ctx: int, settings: EngineSettings, n_prompt: int, n_threads: int
) -> Growth:
    """Spawned, not forked: what this process has in memory is none of the other's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, path, n_ctx, settings, n_prompt, n_threads).result()
        except BrokenProcessPool as error:
            raise InferenceError("the process that measured was ended", path=path) from error


def _measure(path: Path, n_ctx: int, settings: EngineSettings, n_prompt: int, n_threads: int) -> Growth:
    library()
    process = psutil.Process()
    before = process.memory_info().rss
    with (
        Model(path, spikes=settings.spikes) as model,
        Session(
            model,
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_ubatch=settings.n_ubatch,
            n_outputs=settings.n_outputs,
            type_k=settings.type_k,
            type_v=settings.type_v,
            flash_attn=settings.flash_attn,
        ) as session,
    ):
        size = min(n_prompt, session.n_ctx - 1)
        session.evaluate(np.random.default_rng(TOKEN_SEED).integers(model.n_vocab, size=size).tolist())
        session.evaluate([0])
        return Growth(process.memory_info().rss - before, session.kv_bytes, session.state_bytes)
