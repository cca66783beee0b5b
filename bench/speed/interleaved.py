"""Two ways of loading the same weights, timed in turns in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.check import Alternative, Room, refuse_shortage
from sb_edge.memory.forecast import EngineSettings, MemoryForecast, forecast
from sb_edge.runtime.session import Session
from sb_edge.util.progress import progress_bar

Sample = tuple[int, int]
"""Nanoseconds of a prompt, and of the tokens after it one by one."""


def time_in_turns(
    first: Session, second: Session, tokens: Sequence[int], n_prompt: int, repetitions: int, title: str
) -> tuple[list[Sample], list[Sample]]:
    """Time a prompt and the tokens decoded after it; the side that begins changes with each repetition.

    Args:
        first, second: sessions that take all the tokens.
        tokens: the prompt and what is decoded after it.
        n_prompt: of them, in the prompt; at least one, and fewer than all.
        repetitions: pairs.
        title: of the progress bar.

    Returns:
        Of each side, one sample a repetition.
    """
    sides: list[tuple[Session, list[Sample]]] = [(first, []), (second, [])]
    samples = [side[1] for side in sides]
    for session, _ in sides:  # pages in weights and fills caches of kernels
        _time(session, tokens, n_prompt)
    with progress_bar(title, repetitions) as advance:
        for _ in range(repetitions):
            for session, found in sides:
                found.append(_time(session, tokens, n_prompt))
            sides.reverse()
            advance(1)
    return samples[0], samples[1]


def require_memory_for_both(
    header: GgufHeader,
    first: EngineSettings,
    second: EngineSettings,
    n_prompt: int,
    n_gen: int,
    what: str,
) -> None:
    """Refuse what will not fit when both sides are loaded at once; they share the pages of the file.

    Args:
        header: the model's.
        first, second: how it is loaded; the second side maps no less of the file than the first.
        n_prompt, n_gen: tokens.
        what: will not fit, in words.

    Raises:
        OutOfMemoryForecast: what is needed, what there is, and what would fit instead.
        GgufError, SpikeError: as `forecast`.
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
