"""Compare the memory forecast with the measured memory of child processes."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sb_edge.bench.speed.measure import TOKEN_SEED
from sb_edge.bench.speed.plan import BenchModel
from sb_edge.gguf.reader import read_header
from sb_edge.memory.check import require_memory
from sb_edge.memory.forecast import EngineSettings, MemoryForecast, forecast
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model, Session
from sb_edge.system.cpu import default_threads
from sb_edge.util.errors import InferenceError
from sb_edge.util.output import json_fields
from sb_edge.util.progress import progress_bar


@dataclass(frozen=True)
class Growth:
    """Measured memory of a process with one model and one context, bytes.

    Attributes:
        resident: growth of resident memory since the engine was loaded.
        kv, state: size of the context reported by the engine (to 0.01 MiB).
    """

    resident: int
    kv: int
    state: int


@dataclass(frozen=True)
class MemoryCase:
    """Forecast and measured memory of a model with a context of `n_ctx` tokens."""

    model: str
    n_ctx: int
    settings: EngineSettings
    expected: MemoryForecast
    measured: Growth

    @property
    def ratio(self) -> float:
        """Forecast over measured memory."""
        return self.expected.total / self.measured.resident

    def to_json(self) -> dict[str, Any]:
        """Sizes in bytes."""
        return {
            **json_fields(self, "model", "n_ctx"),
            **json_fields(self.settings, "type_k", "type_v", "flash_attn", "spikes"),
            "forecast": json_fields(self.expected) | {"total": self.expected.total},
            **json_fields(self, "measured", "ratio"),
        }


def compare_memory(
    models: Sequence[BenchModel],
    contexts: Sequence[int],
    settings: Sequence[EngineSettings],
    *,
    n_prompt: int,
    n_threads: int | None = None,
) -> list[MemoryCase]:
    """Forecast every combination of model, context and settings, and measure each in a child process.

    Args:
        models: models to load.
        contexts: context sizes, tokens.
        settings: settings for one sequence with `n_outputs` 1.
        n_prompt: number of tokens to evaluate, at most a whole context; more than a ubatch uses all buffers.
        n_threads: None: `default_threads`.

    Raises:
        OutOfMemoryForecast: a combination does not fit in memory; nothing was loaded.
        GgufError, SpikeError, InferenceError: a model is damaged, or does not support the settings.
    """
    threads = n_threads or default_threads()
    planned = []
    for model in models:
        header = read_header(model.path)
        for n_ctx in contexts:
            for each in settings:
                require_memory(header, n_ctx, each, context_option="--depths")
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
    """Measure in a spawned process, which does not inherit this one's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, path, n_ctx, settings, n_prompt, n_threads).result()
        except BrokenProcessPool as error:
            raise InferenceError("the measuring process was killed", path=path) from error


def _measure(path: Path, n_ctx: int, settings: EngineSettings, n_prompt: int, n_threads: int) -> Growth:
    library()
    process = psutil.Process()
    _return_free_memory()
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


def _return_free_memory() -> None:
    """Give freed heap back to the system (glibc): the model would reuse it without growing the process.

    There is much of it where Python has just compiled its modules, none where it loaded their bytecode.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
