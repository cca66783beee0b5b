"""Contexts that this machine reads for a device: their states do not depend on the CPU."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sb_edge.bench.speed.plan import CONTEXT_PADDING, Subject, choose_fill
from sb_edge.device.measuring import DeviceBench
from sb_edge.engine import activate
from sb_edge.gguf.reader import padded
from sb_edge.runtime.session import Model, Session
from sb_edge.util.files import atomic_output
from sb_edge.util.progress import progress_bar

MAGIC = b"SBCTX001"
IS_HOST = 1


def bench_tokens(start: int, count: int, n_vocab: int) -> list[int]:
    """The tokens that the device program reads at positions from `start`: SplitMix64 of the position."""
    x = np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(0x20260101)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x % np.uint64(n_vocab)).tolist()


def context_bytes(state: bytes, position: int, prefill_ns: int) -> bytes:
    """A context in the device program's form: magic, position, time, size, CRC-32, source, state."""
    head = struct.pack("<8sqqQII", MAGIC, position, prefill_ns, len(state), zlib.crc32(state), IS_HOST)
    return head + state


def host_depths(subject: Subject, settings: DeviceBench) -> list[int]:
    """Depths of a model whose context is a real prefill and can be saved, ascending."""
    return [
        depth
        for depth in sorted(set(settings.depths))
        if depth > 0 and choose_fill(subject, depth, settings.fill) == "real"
    ]


def host_contexts(
    subject: Subject, depths: Sequence[int], settings: DeviceBench, folder: Path
) -> Iterator[tuple[int, Path]]:
    """Read the context of each depth on this machine; yield depth and file.

    Args:
        subject: the model.
        depths: ascending.
        settings: cache types, flash attention and ubatch must be those of the device.
        folder: for the files.

    Raises:
        OutOfMemoryForecast, GgufError, InferenceError: see `Session`.
    """
    activate()
    with (
        Model(subject.path, header=subject.header) as model,
        Session(
            model,
            n_ctx=padded(depths[-1] + 1, CONTEXT_PADDING),
            n_batch=settings.n_ubatch,
            n_ubatch=settings.n_ubatch,
            n_outputs=1,
            type_k=settings.type_k,
            type_v=settings.type_v,
            flash_attn=settings.flash_attn,
        ) as session,
        progress_bar(f"{subject.name}: prefill here to {depths[-1]}", depths[-1]) as advance,
    ):
        elapsed, position = 0, 0
        for depth in depths:
            while position < depth:
                tokens = bench_tokens(position, min(settings.n_ubatch, depth - position), model.n_vocab)
                start = time.perf_counter_ns()
                session.evaluate(tokens)
                elapsed += time.perf_counter_ns() - start
                position += len(tokens)
                advance(len(tokens))
            path = folder / f"{subject.sha256[:16]}-{depth}.context"
            with atomic_output(path) as partial:
                partial.write_bytes(context_bytes(session.seq_state(0), depth, elapsed))
            yield depth, path
