"""A benchmark run: every model at every depth, with results that a later run resumes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from sb_edge.bench.rows.results import ResultsFile
from sb_edge.bench.rows.row import Row, RowKey
from sb_edge.bench.speed.available_memory import groups_that_fit, require_memory
from sb_edge.bench.speed.bandwidth import read_bandwidth
from sb_edge.bench.speed.contexts import Contexts
from sb_edge.bench.speed.measure import measure
from sb_edge.bench.speed.plan import BenchModel, BenchSettings, Case, examine, make_plan
from sb_edge.bench.speed.ttft import fitted_row, with_fitted_ttft
from sb_edge.engine import activate
from sb_edge.engine.machine import Machine, describe_machine
from sb_edge.util.errors import SbEdgeError

OnRow = Callable[[Row, int, int], None]
"""Called with each new row, the number of finished measurements, and their total number."""


class TimeBudget:
    """Time limit of a run, checked before each measurement.

    Args:
        seconds: time from now; None: no limit.

    Attributes:
        left_out: skipped cases, "MODEL LABEL".

    Raises:
        SbEdgeError: `seconds` is negative.
    """

    def __init__(self, seconds: float | None = None) -> None:
        if seconds is not None and seconds < 0:
            raise SbEdgeError("a time budget cannot be negative", found=seconds)
        self._end = None if seconds is None else time.monotonic() + seconds
        self.left_out: list[str] = []

    @property
    def is_spent(self) -> bool:
        """Whether the limit is reached."""
        return self._end is not None and time.monotonic() >= self._end


def run(
    models: Sequence[BenchModel],
    settings: BenchSettings,
    *,
    output: Path | None = None,
    on_row: OnRow | None = None,
    budget: TimeBudget | None = None,
    together: bool = True,
    keep_contexts: bool = False,
) -> list[Row]:
    """Measure every model at every depth, except for rows that `output` already contains.

    Args:
        models: models and baselines.
        settings: settings of all models; they decide whether decoding or a prompt is timed.
        output: JSON Lines file; each row is appended when it is measured, and a later call with the same
            settings resumes from it. Prefilled contexts are cached in `output`.contexts until the run is
            complete.
        on_row: called with each measured row.
        budget: time limit; lists the skipped cases.
        together: load the models of a depth together and measure them interleaved, if memory suffices.
        keep_contexts: keep the cached contexts of all depths for later calls with the same `output`.

    Returns:
        Rows of all models by depth, in the order of `models`.

    Raises:
        OutOfMemoryForecast: a case does not fit in memory; nothing was started.
        OutputError: `output` cannot be written, is in use, or is not a results file.
        GgufError, EngineError, InferenceError: see `Model` and `Session`.
    """
    machine = describe_machine(activate())
    plan = make_plan([examine(model) for model in models], settings)
    with ExitStack() as stack:
        results = None if output is None else stack.enter_context(ResultsFile(output))
        folder = None if output is None else output.with_name(f"{output.name}.contexts")
        contexts = stack.enter_context(Contexts(machine, folder, keep_all=keep_contexts))
        progress = _Progress(plan, machine, results, on_row, budget or TimeBudget())
        require_memory(progress.pending)
        for rows in _measurements(progress, settings.n_threads, contexts, together):
            progress.add(rows)
        if not progress.close():
            contexts.discard()
    return progress.all_rows()


class _Progress:
    """Finished rows and pending cases of a run."""

    def __init__(
        self,
        plan: Sequence[Case],
        machine: Machine,
        results: ResultsFile | None,
        on_row: OnRow | None,
        budget: TimeBudget,
    ) -> None:
        self.plan, self.machine, self.budget = plan, machine, budget
        self._results, self._on_row = results, on_row
        finished: dict[RowKey, Row] = {} if results is None else results.finished
        keys = [case.key(machine) for case in plan]
        self.rows = {key: finished[key] for key in keys if key in finished}
        # The key depends on the content, so two names for the same weights are measured once.
        self.pending = list(
            {key: case for key, case in zip(keys, plan, strict=True) if key not in self.rows}.values()
        )
        self._done = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Store rows that were measured together."""
        if self._results is not None:
            self._results.append(*rows)
        for row in rows:
            self.rows[row.key] = row
            self._done += 1
            if self._on_row:
                self._on_row(row, self._done, len(self.pending))

    def series_of(self, case: Case) -> list[Row]:
        """Measured rows of the case's series at smaller depths, in order of depth, without fitted rows."""
        keys = [
            other.key(self.machine)
            for other in self.plan
            if other.series == case.series and other.n_depth < case.n_depth and other.fill != "fitted"
        ]
        return [self.rows[key] for key in dict.fromkeys(keys)]

    def close(self) -> list[str]:
        """Add the skipped cases to the budget's list, and return it."""
        left = [case for case in self.pending if case.key(self.machine) not in self.rows]
        self.budget.left_out += [f"{case.subject.name} {case.label}" for case in left]
        return self.budget.left_out

    def all_rows(self) -> list[Row]:
        """All rows, in order and with the names of the plan."""
        found = [(case.subject.name, self.rows.get(case.key(self.machine))) for case in self.plan]
        return [row.model_copy(update={"model": name}) for name, row in found if row is not None]


def _measurements(
    progress: _Progress, n_threads: int, contexts: Contexts, together: bool
) -> Iterator[list[Row]]:
    for _, same_depth in groupby(progress.pending, key=lambda case: case.n_depth):
        cases = list(same_depth)
        real = [case for case in cases if case.fill != "fitted"]
        if progress.budget.is_spent:
            return
        bandwidth = read_bandwidth(n_threads) if real else 0.0
        for group in groups_that_fit(real, together=together):
            if progress.budget.is_spent:
                return
            rows = measure(group, progress.machine, bandwidth, contexts)
            yield [
                with_fitted_ttft(row, progress.series_of(case))
                if row.is_prefill and case.fill == "synthetic"
                else row
                for case, row in zip(group, rows, strict=True)
            ]
        for case in cases:
            if case.fill == "fitted":
                yield [fitted_row(case, progress.series_of(case))]
