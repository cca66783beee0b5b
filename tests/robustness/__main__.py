"""`python tests/robustness`: hostile files and failing system calls; prints the figures as Markdown.

Everything is drawn from fixed seeds. Exit status 1: a case ended as none may; each is listed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import failing_calls
import mutants
import states
from children import Figures, run_children
from models import make_sources

HEADING = "| check | cases | outcomes | peak memory | findings |\n| :--- | ---: | :--- | ---: | ---: |"


def run(n_mutants: int, n_states: int, per_call: int, seed: int, folder: Path) -> list[Figures]:
    """All checks.

    Args:
        n_mutants: Changed GGUFs, of all kinds together.
        n_states: Changed state files.
        per_call: Failing calls of a kind in each command.
        seed: Fixes every choice.
        folder: Working folder.
    """
    sources = make_sources(folder)
    tiny = sources["tiny"]
    log = folder / "child.log"
    changed = mutants.cases(list(sources.values()), n_mutants, seed, folder)
    found = [run_children("mutants of GGUFs", changed, log=log)]
    state = folder / "state"
    states.make_state(tiny, state)
    cases = states.cases(tiny, state, n_states, seed, folder)
    found.append(run_children("state files", cases, log=log, may_run=False))
    library = failing_calls.compiled(folder)
    if library is not None and per_call:
        checkpoint, rows = folder / "tiny.checkpoint", folder / "rows.jsonl"
        trials = (
            failing_calls.Trial(writer, folder / "trial", library)
            for writer in failing_calls.writers(tiny, checkpoint, rows)
        )
        found.append(failing_calls.check(trials, per_call, seed))
    return found


def main() -> int:
    """Parse the arguments, run, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, prog="tests/robustness")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--states", type=int, default=4_000)
    parser.add_argument("--calls", type=int, default=40, help="failing calls of a kind in each command")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(chosen.mutants, chosen.states, chosen.calls, chosen.seed, Path(folder))
    print(HEADING)
    for figures in found:
        print(figures.row())
    print(f"\nSeed {chosen.seed}, {time.monotonic() - start:.0f} s.")
    for figures in found:
        for finding in figures.findings:
            print(f"- {finding}")
    return int(any(figures.findings for figures in found))


if __name__ == "__main__":
    sys.exit(main())
