"""Decode speed over depth: every model brought to every depth, a row for each, against the memory bandwidth.

One model is loaded at a time, so that a row's resident memory is that model's. What a real prefill computed
is kept in a temporary file, and the next depth continues from it.
"""

from __future__ import annotations

import ctypes
import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import psutil

from sb_edge.bench.bandwidth import read_bandwidth
from sb_edge.bench.fill import CHUNK, MAIN, synthetic_fill
from sb_edge.bench.machine import Machine, describe_machine
from sb_edge.bench.plan import (
    FLASH_ATTN,
    BenchModel,
    Case,
    DecodeSettings,
    examine,
    make_plan,
    require_memory,
)
from sb_edge.bench.results import ResultsFile, Row, RowKey
from sb_edge.bench.roofline import token_traffic
from sb_edge.bench.stats import Timing, summarize
from sb_edge.engine import activate
from sb_edge.errors import InferenceError
from sb_edge.files import require_free_space
from sb_edge.progress import progress_bar
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model, Session

TOKEN_SEED = 20260101
"""Tokens are drawn uniformly from the vocabulary, as llama-bench draws them, but always the same ones."""

OnRow = Callable[[Row, int, int], None]
"""Told of each row: the row, how many of this run are done, how many there are."""


def run_decode(
    models: Sequence[BenchModel],
    settings: DecodeSettings,
    *,
    output: Path | None = None,
    on_row: OnRow | None = None,
) -> list[Row]:
    """Measure every model at every depth; rows already in `output` are taken from there instead.

    Args:
        models: the models, baselines among them.
        settings: the same for all of them.
        output: a JSON Lines file to which each row is appended as soon as it is measured, and that a later
            call with the same settings resumes from.
        on_row: told of each row as it is measured.

    Returns:
        The rows of all models, by depth, in the order of `models`.

    Raises:
        OutOfMemoryForecast: a measurement will not fit in memory; nothing has been started.
        OutputError: `output` cannot be written, is in use or holds something else.
        GgufError, EngineError, InferenceError: a model or the engine is at fault.
    """
    machine = describe_machine(activate())
    cases = make_plan([examine(model) for model in models], settings)
    if output is None:
        return _run(cases, settings, machine, {}, lambda row: None, on_row)
    with ResultsFile(output) as results:
        return _run(cases, settings, machine, results.finished, results.append, on_row)


def _run(
    cases: Sequence[Case],
    settings: DecodeSettings,
    machine: Machine,
    finished: dict[RowKey, Row],
    keep: Callable[[Row], None],
    on_row: OnRow | None,
) -> list[Row]:
    rows = {key: row for case in cases if (row := finished.get(key := case.key(machine)))}
    # Two names for the same weights are measured once: the key is the content.
    pending = list({case.key(machine): case for case in cases if case.key(machine) not in rows}.values())
    require_memory(pending)
    with _Snapshots() as snapshots:
        done = 0
        for _, same_depth in groupby(pending, key=lambda case: case.n_depth):
            bandwidth = read_bandwidth(settings.n_threads)
            for case in same_depth:
                row = _measure(case, machine, bandwidth, snapshots)
                keep(row)
                rows[row.key] = row
                done += 1
                if on_row:
                    on_row(row, done, len(pending))
    return [rows[case.key(machine)].model_copy(update={"model": case.subject.name}) for case in cases]


def _measure(case: Case, machine: Machine, bandwidth: float, snapshots: _Snapshots) -> Row:
    with Model(case.subject.path) as model, _open_session(model, case) as session:
        rng = np.random.default_rng(TOKEN_SEED)
        if case.fill == "synthetic":
            _fill_synthetically(session, case, rng.integers(model.n_vocab, size=CHUNK))
        else:
            _prefill(session, case, rng.integers(model.n_vocab, size=case.n_depth), snapshots)
        tokens = rng.integers(model.n_vocab, size=(case.settings.repetitions, case.settings.n_gen))
        timing = _time_decode(session, tokens, _rewinder(session, case))
        return _row(case, machine, model, session, timing, bandwidth)


def _open_session(model: Model, case: Case) -> Session:
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


def _fill_synthetically(session: Session, case: Case, chunk: np.ndarray) -> None:
    with progress_bar(f"{case.subject.name}: filling to {case.n_depth}", case.n_depth) as advance:
        synthetic_fill(session, case.n_depth, chunk.tolist(), advance)


def _prefill(session: Session, case: Case, tokens: np.ndarray, snapshots: _Snapshots) -> None:
    """Evaluate tokens [n_depth], continuing from the deepest context kept of the same series."""
    start = snapshots.restore(session, case)
    if start < case.n_depth:
        with progress_bar(f"{case.subject.name}: prefill to {case.n_depth}", case.n_depth - start) as advance:
            for first in range(start, case.n_depth, case.settings.n_ubatch):
                piece = tokens[first : first + case.settings.n_ubatch]
                session.evaluate(piece.tolist())
                advance(len(piece))
    snapshots.keep(session, case)


def _rewinder(session: Session, case: Case) -> Callable[[], None]:
    """A function that brings the session back to `n_depth`, so that every repetition starts there.

    Plain attention is cut back; a recurrent state or a window cannot be, and is restored from a copy.
    """
    if case.n_depth == 0:
        return session.clear
    if not case.subject.can_roll_back:
        snapshot = session.seq_state(MAIN)
        return lambda: session.set_seq_state(snapshot, MAIN)
    llama = library()
    memory = llama.llama_get_memory(session.handle)

    def cut_back() -> None:
        if memory is None or not llama.llama_memory_seq_rm(memory, MAIN, case.n_depth, -1):
            raise InferenceError("the engine cannot cut this context back", path=case.subject.path)

    return cut_back


def _time_decode(session: Session, tokens: np.ndarray, rewind: Callable[[], None]) -> Timing:
    """Decode tokens [R, n_gen] one by one, from the same position in each repetition.

    No progress is shown meanwhile: drawing it would take time from the engine's threads. One token before the
    first repetition faults in the weights and applies pending shifts.
    """
    session.evaluate([int(tokens[0, 0])])
    samples = []
    for repetition in tokens.tolist():
        rewind()
        start = time.perf_counter_ns()
        for token in repetition:
            session.evaluate([token])
        samples.append(time.perf_counter_ns() - start)
    return summarize(samples, tokens.shape[1])


def _row(
    case: Case, machine: Machine, model: Model, session: Session, timing: Timing, bandwidth: float
) -> Row:
    settings = case.settings
    # Token i of n_gen attends to n_depth + i positions; this is the mean.
    positions = case.n_depth + (settings.n_gen + 1) / 2
    touched = token_traffic(case.subject.header, positions, type_k=case.type_k, type_v=case.type_v).total
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
        n_prompt=0,
        n_gen=settings.n_gen,
        n_depth=case.n_depth,
        test_time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        avg_ns=timing.avg_ns,
        stddev_ns=timing.stddev_ns,
        avg_ts=timing.avg_ts,
        stddev_ts=timing.stddev_ts,
        samples_ns=timing.samples_ns,
        samples_ts=timing.samples_ts,
        model=case.subject.name,
        label=case.label,
        repetitions=settings.repetitions,
        median_ts=timing.median_ts,
        fill=case.fill,
        n_ctx_train=model.n_ctx_train,
        kv_bytes=session.kv_bytes,
        state_bytes=session.state_bytes,
        rss_bytes=psutil.Process().memory_info().rss,
        bytes_per_token=touched,
        read_bandwidth=bandwidth,
        roofline_fraction=touched * timing.median_ts / bandwidth,
        model_sha256=case.subject.sha256,
        machine_id=machine.id,
        engine_key=machine.engine_key,
    )


def _description(model: Model) -> str:
    """The engine's words for architecture, size and quantization, for instance "llama 1B Q4_0"."""
    buffer = ctypes.create_string_buffer(128)
    library().llama_model_desc(model.handle, buffer, len(buffer))
    return buffer.value.decode("utf-8", errors="replace")


class _Snapshots:
    """Contexts reached by a real prefill, in a temporary folder while a deeper case continues from them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], tuple[int, Path]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="sb-edge-bench-")

    def __enter__(self) -> _Snapshots:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def restore(self, session: Session, case: Case) -> int:
        """Load what was kept of the case's series; return the depth that this brings the session to."""
        depth, file = self._kept.get(case.series, (0, None))
        if file is not None:
            session.set_seq_state(file.read_bytes(), MAIN)
        return depth

    def keep(self, session: Session, case: Case) -> None:
        """Keep the session's context if a deeper case follows in its series, and drop the one before it."""
        _, previous = self._kept.pop(case.series, (0, None))
        if case.is_continued:
            state = session.seq_state(MAIN)
            folder = Path(self._folder.name)
            require_free_space(folder, len(state), "the context kept for the next depth")
            file = folder / "-".join((*case.series, str(case.n_depth)))
            file.write_bytes(state)
            self._kept[case.series] = (case.n_depth, file)
        if previous is not None:
            previous.unlink()
