"""One measurement: a model loaded and brought to its depth, repetitions of the work, and the row of it."""

from __future__ import annotations

import ctypes
import datetime
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import psutil

from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.timing import summarize
from sb_edge.bench.speed.contexts import Contexts, open_session, reach_depth, rewinder
from sb_edge.bench.speed.plan import Case
from sb_edge.engine.machine import Machine
from sb_edge.memory.forecast import FLASH_ATTN
from sb_edge.memory.traffic import token_traffic
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model
from sb_edge.system.conditions import Conditions, read_conditions, throttle_count
from sb_edge.util.progress import progress_bar

TOKEN_SEED = 20260101
"""Tokens are drawn uniformly from the vocabulary, as llama-bench draws them, but always the same ones."""


def measure(cases: Sequence[Case], machine: Machine, bandwidth: float, contexts: Contexts) -> list[Row]:
    """Load all cases at once and measure them in turns; the one that begins changes with each turn.

    Args:
        cases: of one depth, what memory holds together.
        machine: what it runs on.
        bandwidth: read bandwidth of this run, bytes per second.
        contexts: what shallower prefills left.

    Returns:
        A row for each case, in their order; rows of several cases share `turns`.
    """
    resident = _resident_bytes()
    with ExitStack() as stack:
        loaded = [stack.enter_context(_Loaded(case, contexts, resident)) for case in cases]
        throttled = throttle_count()
        _take_turns(loaded)
        conditions = read_conditions(throttled)
        turns = os.urandom(6).hex() if len(loaded) > 1 else None
        return [one.row(machine, bandwidth, conditions, turns) for one in loaded]


def _take_turns(loaded: Sequence[_Loaded]) -> None:
    """The bar is drawn between two samples only: drawing it would take time from the engine's threads."""
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
    """A case's model in memory, at its depth and warmed up; `resident` is the process's size without any."""

    def __init__(self, case: Case, contexts: Contexts, resident: int) -> None:
        self.case = case
        self._samples_ns: list[int] = []
        before = _resident_bytes()
        with ExitStack() as stack:
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
            self._close = stack.pop_all().close

    def __enter__(self) -> _Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def sample(self, repetition: int) -> None:
        """Go back to the depth, then time the work: the prompt in batches, or decoding token by token."""
        tokens = self._tokens[repetition]
        pieces = [tokens] if self.case.settings.n_prompt else [[token] for token in tokens]
        self._rewind()
        start = time.perf_counter_ns()
        for piece in pieces:
            self._session.evaluate(piece)
        self._samples_ns.append(time.perf_counter_ns() - start)

    def row(self, machine: Machine, bandwidth: float, conditions: Conditions, turns: str | None) -> Row:
        case, settings, model = self.case, self.case.settings, self._model
        timing = summarize(self._samples_ns, settings.n_timed)
        touched = _bytes_per_token(case)
        ttft_ns = self._elapsed_ns if settings.n_prompt and case.n_depth else None
        return Row(
            build_commit=machine.engine_commit[:7],
            cpu_info=machine.cpu,
            backends="CPU",
            model_filename=case.subject.path.name,
            model_type=_description(model),
            model_size=model.size_bytes,
            model_n_params=model.n_params,
            n_batch=settings.n_ubatch,
            n_ubatch=settings.n_ubatch,
            n_threads=settings.n_threads,
            type_k=case.type_k,
            type_v=case.type_v,
            flash_attn=FLASH_ATTN[settings.flash_attn],
            n_prompt=settings.n_prompt,
            n_gen=settings.n_gen,
            n_depth=case.n_depth,
            test_time=utc_now(),
            avg_ns=timing.avg_ns,
            stddev_ns=timing.stddev_ns,
            avg_ts=timing.avg_ts,
            stddev_ts=timing.stddev_ts,
            samples_ns=timing.samples_ns,
            samples_ts=timing.samples_ts,
            model=case.subject.name,
            label=case.label,
            repetitions=settings.repetitions,
            n_warmup=settings.n_warmup,
            median_ts=timing.median_ts,
            fill=case.fill,
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
            cpu_mhz=conditions.cpu_mhz,
            cpu_mhz_max=conditions.cpu_mhz_max,
            temperature_c=conditions.temperature_c,
            throttle_events=conditions.throttle_events,
            model_sha256=case.subject.sha256,
            machine_id=machine.id,
            engine_key=machine.engine_key,
            machine=machine,
        )


def utc_now() -> str:
    """The time of a row."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _bytes_per_token(case: Case) -> int | None:
    """What decoding reads for a token; None for a prompt, where a batch of tokens shares its reads."""
    n_gen = case.settings.n_gen
    if not n_gen:
        return None
    # Token i of n_gen attends to n_depth + i positions; this is the mean.
    positions = case.n_depth + (n_gen + 1) / 2
    return token_traffic(case.subject.header, positions, type_k=case.type_k, type_v=case.type_v).total


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _description(model: Model) -> str:
    """The engine's words for architecture, size and quantization, for instance "llama 1B Q4_0"."""
    buffer = ctypes.create_string_buffer(128)
    library().llama_model_desc(model.handle, buffer, len(buffer))
    return buffer.value.decode("utf-8", errors="replace")
