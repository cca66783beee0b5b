"""`python tests/robustness`: hostile files and failing system calls; prints the figures as Markdown.

Everything is drawn from the seed: parts of a long run are runs with other seeds, and 0 cases leave a check
out. Progress and findings are printed as they come. Exit status 1: a case ended as none may.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import edits
import failing_calls
import mutants
import states
from children import Figures, run_children
from models import make_sources

HEADING = "| check | cases | outcomes | peak memory | findings |\n| :--- | ---: | :--- | ---: | ---: |"


def run(n_mutants: int, n_states: int, per_call: int, n_edits: int, seed: int, folder: Path) -> list[Figures]:
    """All checks.

    Args:
        n_mutants: Changed GGUFs, of all kinds together.
        n_states: Changed state files.
        per_call: Failing calls of a kind in each command.
        n_edits: Edited prompts, for each of two models in each of three settings of the server.
        seed: Fixes every choice.
        folder: Working folder.
    """
    sources = make_sources(folder)
    tiny = sources["tiny"]
    log = folder / "child.log"
    found = []
    if n_mutants:
        changed = mutants.cases(list(sources.values()), n_mutants, seed, folder)
        found.append(run_children("mutants of GGUFs", changed, log=log))
    if n_states:
        states.make_state(tiny, folder / "state")
        cases = states.cases(tiny, folder / "state", n_states, seed, folder)
        found.append(run_children("state files", cases, log=log, may_run=False))
    library = failing_calls.compiled(folder)
    if library is not None and per_call:
        checkpoint, rows = folder / "tiny.checkpoint", folder / "rows.jsonl"
        trials = (
            failing_calls.Trial(writer, folder / "trial", library)
            for writer in failing_calls.writers(tiny, checkpoint, rows)
        )
        found.append(failing_calls.check(trials, per_call, seed))
    if n_edits:
        found += edits.check(tiny, n_edits, seed)
    return found


def main() -> int:
    """Parse the arguments, run, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, prog="tests/robustness")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--states", type=int, default=4_000)
    parser.add_argument("--calls", type=int, default=40, help="failing calls of a kind in each command")
    parser.add_argument("--edits", type=int, default=5_000, help="prompts for each model and setting")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(chosen.mutants, chosen.states, chosen.calls, chosen.edits, chosen.seed, Path(folder))
    print(f"\n{HEADING}")
    for figures in found:
        print(figures.row())
    print(f"\nSeed {chosen.seed}, {time.monotonic() - start:.0f} s.")
    return int(any(figures.findings for figures in found))


if __name__ == "__main__":
    sys.exit(main())
