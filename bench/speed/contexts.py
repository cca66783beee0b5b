"""Fill a session's context to a depth; keep prefilled contexts for deeper cases."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb_edge.bench.speed.context_fill import CHUNK, MAIN, synthetic_fill
from sb_edge.bench.speed.plan import Case
from sb_edge.engine.machine import Machine
from sb_edge.memory.forecast import FLASH_ATTN
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError, OutputError
from sb_edge.util.files import atomic_output, require_free_space
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.progress import progress_bar


def open_session(model: Model, case: Case) -> Session:
    """Open a session whose context is large enough for the case."""
    synthetic = case.fill == "synthetic"
    return Session(
        model,
        n_ctx=case.n_ctx,
        n_batch=case.settings.n_ubatch,
        n_ubatch=case.settings.n_ubatch,
        n_threads=case.settings.n_threads,
        n_seq_max=2 if synthetic else 1,
        n_outputs=1,
        kv_unified=synthetic,
        type_k=case.type_k,
        type_v=case.type_v,
        flash_attn=case.settings.flash_attn,
    )


def reach_depth(session: Session, case: Case, contexts: Contexts, rng: np.random.Generator) -> int | None:
    """Fill an empty session to the case's depth, by a real prefill or synthetically.

    Returns:
        Time of the real prefill of `n_depth` tokens, nanoseconds; None for a synthetic context fill.
    """
    n_vocab = session.model.n_vocab
    if case.fill == "synthetic":
        chunk = rng.integers(n_vocab, size=CHUNK).tolist()
        with progress_bar(f"{case.subject.name}: filling to {case.n_depth}", case.n_depth) as advance:
            synthetic_fill(session, case.n_depth, chunk, advance)
        return None
    session.evaluate([0])  # page in the weights before the prefill is timed
    session.clear()
    return prefill(session, case, rng.integers(n_vocab, size=case.n_depth), contexts)


def prefill(session: Session, case: Case, tokens: np.ndarray, contexts: Contexts) -> int:
    """Evaluate tokens [n_depth], continuing from the deepest kept context of the same series.

    Returns:
        Time for all tokens including those of the kept context, nanoseconds.
    """
    start, elapsed_ns = contexts.restore(session, case)
    if start < case.n_depth:
        left = case.n_depth - start
        with progress_bar(f"{case.subject.name}: prefill to {case.n_depth}", left, live=False) as advance:
            for first in range(start, case.n_depth, case.settings.n_ubatch):
                chunk = tokens[first : first + case.settings.n_ubatch].tolist()
                began = time.perf_counter_ns()
                session.evaluate(chunk)
                elapsed_ns += time.perf_counter_ns() - began
                advance(len(chunk))
    contexts.keep(session, case, elapsed_ns)
    return elapsed_ns


def rewinder(session: Session, case: Case) -> Callable[[], None]:
    """A function that returns the session to `n_depth` before each repetition.

    The cache of full attention is truncated. A recurrent state or window is restored from a copy.
    """
    if case.n_depth == 0:
        return session.clear
    if not case.subject.can_roll_back:
        snapshot = session.seq_state(MAIN)
        return lambda: session.set_seq_state(snapshot, MAIN)
    llama = library()
    memory = llama.llama_get_memory(session.handle)

    def truncate() -> None:
        if memory is None or not llama.llama_memory_seq_rm(memory, MAIN, case.n_depth, -1):
            raise InferenceError("the engine cannot truncate this context", path=case.subject.path)

    return truncate


@dataclass(frozen=True)
class _Kept:
    depth: int
    elapsed_ns: int
    file: Path


class Contexts:
    """Cache of prefilled contexts, one file per series; a deeper case continues from them.

    Contexts in a folder outlive the process, so that an interrupted run continues its prefill; `discard`
    removes them. Use as a context manager.

    Args:
        machine: contexts of other machines or engines are ignored.
        folder: None: a temporary folder.
        keep_all: keep the context of every depth.
    """

    SUFFIX = ".context"

    def __init__(self, machine: Machine, folder: Path | None = None, *, keep_all: bool = False) -> None:
        self._identity = f"{machine.id}/{machine.engine_key}"
        self._temporary = tempfile.TemporaryDirectory(prefix="sb-edge-bench-") if folder is None else None
        self._keep_all = keep_all
        self._folder = Path(self._temporary.name) if self._temporary else Path(folder or "")

    def __enter__(self) -> Contexts:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def discard(self) -> None:
        """Remove all contexts, unless `keep_all` is set."""
        if not self._keep_all:
            shutil.rmtree(self._folder, ignore_errors=True)

    def restore(self, session: Session, case: Case) -> tuple[int, int]:
        """Load the deepest context of the case's series; return its depth and its prefill time, ns."""
        usable = [kept for kept in self._of(case) if kept.depth <= case.n_depth]
        if not usable:
            return 0, 0
        deepest = max(usable, key=lambda kept: kept.depth)
        session.set_seq_state(deepest.file.read_bytes(), MAIN)
        return deepest.depth, deepest.elapsed_ns

    def keep(self, session: Session, case: Case, elapsed_ns: int) -> None:
        """Keep the session's context for a deeper case of its series, and remove shallower ones.

        With `keep_all`, keep it always and remove nothing.
        """
        earlier = [kept for kept in self._of(case) if kept.depth <= case.n_depth]
        if case.is_continued or self._keep_all:
            if not any(kept.depth == case.n_depth for kept in earlier):
                self._write(session.seq_state(MAIN), case, elapsed_ns)
            earlier = [kept for kept in earlier if kept.depth < case.n_depth]
        if not self._keep_all:
            for kept in earlier:
                kept.file.unlink()

    def _write(self, state: bytes, case: Case, elapsed_ns: int) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be created: {error.strerror}", path=self._folder) from error
        require_free_space(self._folder, len(state), "the context kept for the next depth")
        name = f"{self._series(case)}-{case.n_depth}-{elapsed_ns}{self.SUFFIX}"
        with atomic_output(self._folder / name) as partial:
            partial.write_bytes(state)

    def _of(self, case: Case) -> list[_Kept]:
        found = []
        for file in self._folder.glob(f"{self._series(case)}-*-*{self.SUFFIX}"):
            _, depth, elapsed_ns = file.name.removesuffix(self.SUFFIX).split("-")
            found.append(_Kept(int(depth), int(elapsed_ns), file))
        return found

    def _series(self, case: Case) -> str:
        """Identifier of contexts that can continue one another."""
        settings = case.settings
        how = (settings.n_ubatch, settings.n_threads, FLASH_ATTN[settings.flash_attn])
        return sha256_of_bytes(repr((self._identity, case.series, how)).encode())[:16]
