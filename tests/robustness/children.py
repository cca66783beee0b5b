"""Work in forked children of a process that has loaded everything, so that no case pays for a start."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sb_edge.util.errors import SbEdgeError

SECONDS = 60
"""Longest time of a child."""

PROGRESS = 500
"""Cases between two lines of progress."""

_ON_NAN = re.compile("Assertion `(!isnan|!isinf|scale > 0|sum > 0)")
"""Assertions of ggml in a debug build: it stops at the NaN that other builds refuse at the logits."""

RAN, REFUSED, NOISE, FAILED = 0, 1, 3, 4


@dataclass
class Figures:
    """What became of the cases of one check.

    Attributes:
        name: The check.
        outcomes: Number of cases by outcome.
        peak_mib: Largest resident memory of a child, or of a process that it started.
        findings: Cases that ended as none may, with the reason.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    peak_mib: int = 0
    findings: list[str] = field(default_factory=list)

    def count(self, case: str, outcome: str, *, bad: bool, detail: str = "") -> None:
        """Add a case."""
        self.outcomes[outcome] += 1
        if bad:
            self.add_finding(f"{case}: {outcome} {detail[-300:]}".rstrip())
        if self.outcomes.total() % PROGRESS == 0:
            print(self.row(), flush=True)

    def add_finding(self, finding: str) -> None:
        """Keep it, and print it at once."""
        self.findings.append(finding)
        print(f"- {finding}", flush=True)

    def row(self) -> str:
        """The figures in a line of Markdown."""
        found = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        cells = (self.name, f"{sum(self.outcomes.values()):,}", found, f"{self.peak_mib} MiB")
        return f"| {' | '.join(cells)} | {len(self.findings)} |"


def run_children(
    name: str,
    cases: Iterable[tuple[str, Callable[[], bool]]],
    *,
    log: Path,
    most_mib: int = 1024,
    may_run: bool = True,
) -> Figures:
    """Run each case in a child.

    Args:
        name: The check.
        cases: Label and work; the work returns False if its result is noise, and raises SbEdgeError where it
            refuses its input.
        log: File for the children's standard error.
        most_mib: Memory that no child may exceed.
        may_run: False: every case must be refused.
    """
    figures = Figures(name)
    for label, work in cases:
        status, peak, text = _run(work, log)
        figures.peak_mib = max(figures.peak_mib, peak)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            outcome = "hang" if number == signal.SIGALRM else f"signal {number}"
            on_nan = number == signal.SIGABRT and _ON_NAN.search(text) is not None
            outcome = "stopped at NaN by a debug assertion" if on_nan else outcome
            figures.count(label, outcome, bad=not on_nan, detail=text)
            continue
        code = os.WEXITSTATUS(status)
        outcome = {RAN: "ran", REFUSED: "refused", NOISE: "noise"}.get(code, "traceback")
        bad = outcome in ("noise", "traceback") or (outcome == "ran" and not may_run)
        figures.count(label, outcome, bad=bad, detail=text)
        if peak > most_mib:
            figures.add_finding(f"{label}: {peak} MiB")
    return figures


def _run(work: Callable[[], bool], log: Path) -> tuple[int, int, str]:
    """Wait status, peak memory in MiB, and the last line of standard error."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(work, log, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        grandchild = int(pipe.read() or 0)
    _, status, usage = os.wait4(pid, 0)
    lines = log.read_text(errors="replace").strip().splitlines()
    return status, max(usage.ru_maxrss, grandchild) >> 10, lines[-1] if lines else ""


def _child(work: Callable[[], bool], log: Path, pipe: int) -> None:
    code = FAILED
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 2)
        os.dup2(fd, 1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        code = RAN if work() else NOISE
    except (SbEdgeError, MemoryError) as error:
        code = REFUSED
        sys.stderr.write(f"{error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(pipe, str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
        sys.stderr.flush()
        os._exit(code)
