"""Interleaved timing of two sessions on the same weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.check import Alternative, Room, refuse_shortage
from sb_edge.memory.forecast import EngineSettings, MemoryForecast, forecast
from sb_edge.runtime.session import Model, Session
from sb_edge.util.progress import progress_bar

Sample = tuple[int, int]
"""Times of a prompt and of decoding the tokens after it, nanoseconds."""


def time_interleaved(
    first: Model,
    second: Model,
    tokens: Sequence[int],
    *,
    n_prompt: int,
    repetitions: int,
    n_threads: int | None,
    title: str,
) -> tuple[list[Sample], list[Sample]]:
    """Time a prompt and the tokens decoded after it; the order of the sides alternates.

    Args:
        first, second: the two sides.
        tokens: the prompt and the tokens decoded after it.
        n_prompt: number of prompt tokens; at least one, fewer than all.
        repetitions: number of pairs.
        n_threads: None: `default_threads`.
        title: text of the progress bar.

    Returns:
        One sample per repetition, for each side.
    """
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(Session(model, n_ctx=len(tokens), n_threads=n_threads, n_outputs=1))
            for model in (first, second)
        ]
        for session in sessions:  # page in weights, warm up kernels
            _time(session, tokens, n_prompt)
        sides = list(zip(sessions, samples, strict=True))
        advance = stack.enter_context(progress_bar(title, repetitions))
        for _ in range(repetitions):
            for session, found in sides:
                found.append(_time(session, tokens, n_prompt))
            sides.reverse()
            advance(1)
    return samples


def require_memory_for_both(
    header: GgufHeader,
    first: EngineSettings,
    second: EngineSettings,
    n_prompt: int,
    n_gen: int,
    what: str,
) -> None:
    """Check that both sides fit in memory at once; they share the pages of the file.

    Args:
        header: header of the model.
        first, second: settings of the two sides; the second maps at least as much of the file as the first.
        n_prompt, n_gen: number of prompt and decoded tokens.
        what: name of the measurement, for the error.

    Raises:
        OutOfMemoryForecast: names needed and available memory, and settings that fit.
        GgufError, SpikeError: see `forecast`.
    """

    def need(prompt: int) -> MemoryForecast:
        one, other = (forecast(header, prompt + n_gen, settings) for settings in (first, second))
        beside = other.beyond_weights().total + other.repacked + other.engine
        return replace(one, extra=beside + max(other.weights - one.weights, 0))

    def shorter() -> Iterator[Alternative]:
        prompt = n_prompt // 2
        while prompt:
            yield f"--n-prompt {prompt}", need(prompt)
            prompt //= 2

    refuse_shortage(need(n_prompt), Room.now(), what, path=header.files[0], alternatives=(shorter(),))


def _time(session: Session, tokens: Sequence[int], n_prompt: int) -> Sample:
    session.clear()
    start = time.perf_counter_ns()
    session.evaluate(tokens[:n_prompt])
    middle = time.perf_counter_ns()
    for token in tokens[n_prompt:]:
        session.evaluate([token])
    return middle - start, time.perf_counter_ns() - middle
