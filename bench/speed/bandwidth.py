"""Sequential memory read bandwidth, the upper bound of decode speed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sb_edge.memory.check import Room
from sb_edge.system.cpu import fast_cpus, kept_on
from sb_edge.util.errors import SbEdgeError

BUFFER_BYTES = 1 << 30
"""At least twice the last-level cache of any current machine."""

MEMORY_SHARE = 8
"""The buffer takes at most 1 / MEMORY_SHARE of the available memory."""


def read_bandwidth(n_threads: int, *, buffer_bytes: int | None = None, passes: int = 5) -> float:
    """Measure the sequential read bandwidth of `n_threads` threads.

    Each thread sums its part of a buffer as 64-bit integers. numpy does this in vector registers without the
    interpreter lock, so that loads dominate. As in the STREAM benchmark, the best pass is the result.

    Args:
        n_threads: number of reading threads, on the cores that the engine uses.
        buffer_bytes: size of the buffer, at most an eighth of the available memory; None: BUFFER_BYTES.
        passes: number of passes over the buffer.

    Returns:
        Bytes per second.

    Raises:
        SbEdgeError: a count or size that is not positive.
    """
    buffer_bytes = BUFFER_BYTES if buffer_bytes is None else buffer_bytes
    if n_threads < 1 or passes < 1 or buffer_bytes < 8 * n_threads:
        raise SbEdgeError(
            "read_bandwidth needs at least one thread, one pass and 8 bytes per thread",
            found=f"{n_threads} threads, {passes} passes, {buffer_bytes} bytes",
        )
    size = min(buffer_bytes, Room.now().physical // MEMORY_SHARE)
    # Untouched pages would all map to one cached page of zeros, so the buffer is written.
    buffer = np.ones(max(size // 8, n_threads), dtype=np.uint64)
    parts = np.array_split(buffer, n_threads)
    best_seconds = float("inf")
    with kept_on(fast_cpus(n_threads)), ThreadPoolExecutor(n_threads) as pool:
        for _ in range(passes):
            start = time.perf_counter()
            total = sum(pool.map(_sum, parts))
            best_seconds = min(best_seconds, time.perf_counter() - start)
            if total != buffer.size:
                raise SbEdgeError(
                    "the bandwidth measurement read wrong data", found=total, expected=buffer.size
                )
    return buffer.nbytes / best_seconds


def _sum(part: np.ndarray) -> int:
    return int(np.add.reduce(part))
