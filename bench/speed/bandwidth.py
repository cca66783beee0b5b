"""Sequential memory read bandwidth: the ceiling under which decoding works."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

from sb_edge.system.cpu import fast_cpus, kept_on
from sb_edge.util.errors import SbEdgeError

BUFFER_BYTES = 1 << 30
"""Larger than the last-level cache of any current machine by a factor of two or more."""

MEMORY_SHARE = 8
"""The buffer takes at most one part in this many of the memory that is free."""


def read_bandwidth(n_threads: int, *, buffer_bytes: int | None = None, passes: int = 5) -> float:
    """Measure how fast `n_threads` threads together read memory in sequence.

    Each thread sums its own part of one buffer as 64-bit integers, which numpy does in vector registers with
    the interpreter lock released: every byte is loaded once and the additions cost less than the loads. As in
    the STREAM benchmark, the best pass counts, because what disturbs a pass can only make it slower.

    Args:
        n_threads: threads reading at the same time, usually as many as the engine uses; on the same cores.
        buffer_bytes: size of the buffer, None: BUFFER_BYTES; reduced to an eighth of the memory available.
        passes: how often the buffer is read.

    Returns:
        Bytes per second.

    Raises:
        SbEdgeError: a count or size that is not positive.
    """
    buffer_bytes = BUFFER_BYTES if buffer_bytes is None else buffer_bytes
    if n_threads < 1 or passes < 1 or buffer_bytes < 8 * n_threads:
        raise SbEdgeError(
            "read_bandwidth needs at least one thread, one pass and 8 bytes a thread",
            found=f"{n_threads} threads, {passes} passes, {buffer_bytes} bytes",
        )
    size = min(buffer_bytes, psutil.virtual_memory().available // MEMORY_SHARE)
    # Written, not only reserved: untouched pages all map to the same page of zeros, which stays in the cache.
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
