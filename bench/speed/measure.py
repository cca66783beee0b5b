"""Measure cases: load the models, fill their contexts, time the repetitions, make the rows."""

from __future__ import annotations

import ctypes
import datetime
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil

from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.timing import summarize
from sb_edge.bench.speed.contexts import Contexts, open_session, reach_depth, rewinder
from sb_edge.bench.speed.plan import Case, Subject
from sb_edge.engine.machine import Machine
from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.traffic import token_traffic
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model
from sb_edge.system.conditions import Conditions, read_conditions, throttle_count
from sb_edge.util.progress import progress_bar

TOKEN_SEED = 20260101
"""Seed of the tokens, which are drawn uniformly from the vocabulary as in llama-bench."""


def measure(cases: Sequence[Case], machine: Machine, bandwidth: float, contexts: Contexts) -> list[Row]:
    """Load all cases and measure them interleaved, in alternating order.

    Args:
        cases: cases of one depth that fit in memory together.
        machine: this machine and engine.
        bandwidth: read bandwidth of this run, bytes per second.
        contexts: kept contexts of shallower cases.

    Returns:
        One row per case, in order; rows of several cases share `turns`.
    """
    resident = _resident_bytes()
    with ExitStack() as stack:
        loaded = [_Loaded(case, contexts, resident, stack) for case in cases]
        throttled = throttle_count()
        _measure_interleaved(loaded)
        conditions = read_conditions(throttled)
        turns = os.urandom(6).hex() if len(loaded) > 1 else None
        return [one.row(machine, bandwidth, conditions, turns) for one in loaded]


def _measure_interleaved(loaded: Sequence[_Loaded]) -> None:
    """Sample all cases in alternating order; the progress bar is drawn only between samples."""
    order = list(loaded)
    repetitions = loaded[0].case.settings.repetitions
    names = ", ".join(dict.fromkeys(one.case.subject.name for one in loaded))
    with progress_bar(f"{names}: {loaded[0].case.label}", repetitions * len(order), live=False) as advance:
        for repetition in range(repetitions):
            for one in order:
                one.sample(repetition)
                advance(1)
            order.reverse()


class _Loaded:
    """A loaded case at its depth after warm-up.

    Args:
        case: the case.
        contexts: kept contexts of shallower cases.
        resident: memory of the process without models, bytes.
        stack: closes model and session.
    """

    def __init__(self, case: Case, contexts: Contexts, resident: int, stack: ExitStack) -> None:
        self.case = case
        self._samples_ns: list[int] = []
        before = _resident_bytes()
        self._model = stack.enter_context(Model(case.subject.path, header=case.subject.header))
        self._session = stack.enter_context(open_session(self._model, case))
        rng = np.random.default_rng(TOKEN_SEED)
        self._elapsed_ns = reach_depth(self._session, case, contexts, rng)
        shape = (case.settings.repetitions, case.settings.n_timed)
        self._tokens: list[list[int]] = rng.integers(self._model.n_vocab, size=shape).tolist()
        self._rewind = rewinder(self._session, case)
        for _ in range(case.settings.n_warmup):
            self._session.evaluate(self._tokens[0][:1])
        self._rss_bytes = _resident_bytes() - before + resident

    def sample(self, repetition: int) -> None:
        """Return to the depth and time the work: a prompt in batches, or decoding token by token."""
        tokens = self._tokens[repetition]
        chunks = [tokens] if self.case.settings.n_prompt else [[token] for token in tokens]
        self._rewind()
        start = time.perf_counter_ns()
        for chunk in chunks:
            self._session.evaluate(chunk)
        self._samples_ns.append(time.perf_counter_ns() - start)

    def row(self, machine: Machine, bandwidth: float, conditions: Conditions, turns: str | None) -> Row:
        """The result of all samples; `turns` identifies the rows measured interleaved."""
        case, settings, model = self.case, self.case.settings, self._model
        timing = summarize(self._samples_ns, settings.n_timed)
        touched = None  # the tokens of a prompt share reads
        if settings.n_gen:
            touched = bytes_per_token(
                case.subject.header, case.n_depth, settings.n_gen, type_k=case.type_k, type_v=case.type_v
            )
        ttft_ns = self._elapsed_ns if settings.n_prompt and case.n_depth else None
        return Row(
            **case.key(machine)._asdict(),
            **asdict(timing),
            **asdict(conditions),
            **source_fields(case.subject, machine),
            model_type=_description(model),
            model_size=model.size_bytes,
            model_n_params=model.n_params,
            n_batch=settings.n_ubatch,
            label=case.label,
            turns=turns,
            ttft_ns=ttft_ns,
            ttft_source=None if ttft_ns is None else "measured",
            n_ctx_train=model.n_ctx_train,
            kv_bytes=self._session.kv_bytes,
            state_bytes=self._session.state_bytes,
            rss_bytes=self._rss_bytes,
            bytes_per_token=touched,
            read_bandwidth=bandwidth,
            roofline_fraction=None if touched is None else touched * timing.median_ts / bandwidth,
            machine=machine,
        )


def utc_now() -> str:
    """The current time for `Row.test_time`."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def source_fields(subject: Subject, machine: Machine) -> dict[str, Any]:
    """Fields of a row that name its model, engine and processor, and the current time."""
    return {
        "build_commit": machine.engine_commit[:7],
        "cpu_info": machine.cpu,
        "backends": "CPU",
        "model_filename": subject.path.name,
        "test_time": utc_now(),
        "model": subject.name,
    }


def bytes_per_token(header: GgufHeader, n_depth: int, n_gen: int, *, type_k: str, type_v: str) -> int:
    """Bytes read per decoded token, mean over `n_gen` tokens; token i attends to n_depth + i positions.

    Args:
        header: header of the model's GGUF.
        n_depth: tokens in the context before the decoded ones.
        n_gen: number of decoded tokens.
        type_k, type_v: types of the cache.
    """
    return token_traffic(header, n_depth + (n_gen + 1) / 2, type_k=type_k, type_v=type_v).total


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _description(model: Model) -> str:
    """The engine's description of architecture, size and quantization, for example "llama 1B Q4_0"."""
    buffer = ctypes.create_string_buffer(128)
    library().llama_model_desc(model.handle, buffer, len(buffer))
    return buffer.value.decode("utf-8", errors="replace")
