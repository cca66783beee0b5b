"""Decode speed over depth: every model brought to every depth, a row for each, against the memory bandwidth.

One model is loaded at a time, so that a row's resident memory is that model's. What a real prefill computed is
kept in a temporary file, and the next depth continues from it.
"""

from __future__ import annotations

import ctypes
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from sb_edge.runtime.session import Model, Session

TOKEN_SEED = 20260101
"""Prompt and decoded tokens are drawn uniformly from the vocabulary, as llama-bench draws them, from this seed."""

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
        output: a JSON Lines file to which each row is appended as soon as it is measured, and that a later call
            with the same settings resumes from.
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
    with _Snapshots(pending) as snapshots:
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
    return [
        rows[case.key(machine)].model_copy(update={"model": case.subject.name}) for case in cases
    ]
