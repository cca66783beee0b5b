"""Failing system calls in every command that writes: no broken output, and no exit status 0."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from children import Figures

SOURCE = Path(__file__).with_name("fail.c")
CALLS = {
    "write": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO,),
    "rename": (errno.EIO,),
    "mmap": (errno.ENOMEM,),
    "read": (errno.EIO,),
}


@dataclass(frozen=True)
class Writer:
    """A command that writes.

    Attributes:
        name: For the figures.
        arguments: Of `sb-edge`; OUT is what it writes.
        is_folder: It writes a folder.
    """

    name: str
    arguments: tuple[object, ...]
    is_folder: bool = False


def writers(tiny: Path, checkpoint: Path, rows: Path) -> list[Writer]:
    """The commands, on small inputs."""
    return [
        Writer("convert", ("convert", checkpoint, "--outtype", "f32", "-o", "OUT")),
        Writer("convert in parts", ("convert", checkpoint, "--split-max-size", "500K", "-o", "OUT.gguf")),
        Writer("quantize", ("quantize", tiny, "OUT", "Q8_0")),
        Writer("spikes set", ("spikes", "set", tiny, "OUT", "3")),
        Writer("init", ("init", "--preset", "tiny", "-o", "OUT"), is_folder=True),
        Writer("upcycle", ("upcycle", checkpoint, "-o", "OUT", "--experts", "2"), is_folder=True),
        Writer("inspect --json", ("inspect", tiny, "--json", "OUT")),
        Writer("bench report", ("bench", "report", rows, "-o", "OUT")),
        Writer(
            "generate --save-state",
            ("generate", tiny, "-p", "x", "-n", "2", "-c", "256", "--save-state", "OUT"),
        ),
        Writer("spikes stats --json", ("spikes", "stats", tiny, "--tokens", "64", "--json", "OUT")),
    ]


def compiled(folder: Path) -> Path | None:
    """The library to preload; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "fail.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Trial:
    """One command in a folder of its own, with or without a failing call."""

    def __init__(self, writer: Writer, folder: Path, library: Path) -> None:
        self.writer, self.folder, self.library = writer, folder, library
        self.counter = folder.parent / "count"

    def run(self, call: str, nth: int, error: int = errno.EIO) -> tuple[int, int, str]:
        """Exit status, number of calls, and standard error."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.counter.unlink(missing_ok=True)
        if not self.writer.is_folder:
            for name in ("OUT", "OUT.gguf"):
                (self.folder / name).write_text("earlier")
        out = self.folder / "OUT"
        arguments = [str(each) for each in self.writer.arguments]
        arguments = [str(out) + each[3:] if each.startswith("OUT") else each for each in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "sb_edge", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=300,
            env=os.environ
            | {
                "LD_PRELOAD": str(self.library),
                "FAIL_FOLDER": str(self.folder),
                "FAIL_CALL": call,
                "FAIL_NTH": str(nth),
                "FAIL_ERRNO": str(error),
                "FAIL_COUNT": str(self.counter),
            },
        )
        count = self.counter.stat().st_size if self.counter.is_file() else 0
        return done.returncode, count, done.stderr

    def content(self) -> dict[str, bytes]:
        """Content of the files in the folder, by name."""
        return {
            str(file.relative_to(self.folder)): file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }

    def is_unchanged(self) -> bool:
        """Only earlier files, as they were."""
        return all(data == b"earlier" for data in self.content().values())


def check(trials: Iterator[Trial], per_call: int, seed: int) -> Figures:
    """Let `per_call` calls of each kind fail in each command, drawn from all if there are more."""
    figures = Figures("failing system calls")
    for trial in trials:
        for call, errors in CALLS.items():
            status, count, problem = trial.run(call, 0)
            name = f"{trial.writer.name}, {call}"
            if status != 0:
                figures.count(name, "does not run", bad=True, detail=problem[-200:])
                continue
            chance = random.Random(f"{seed} {name}")
            every = range(1, count + 1)
            chosen = every if count <= per_call else chance.sample(every, per_call - 1)
            for nth in sorted({*chosen, count} - {0}):  # the last one is the likeliest to be overlooked
                error = chance.choice(errors)
                label = f"{name} {nth} of {count} ({errno.errorcode[error]})"
                _judge(trial, label, trial.run(call, nth, error), figures)
    return figures


def _judge(trial: Trial, label: str, outcome: tuple[int, int, str], figures: Figures) -> None:
    status, _, problem = outcome
    left, is_unchanged = trial.content(), trial.is_unchanged()
    errors = [line for line in problem.splitlines() if line.startswith("error: ")]
    is_line = len(errors) == 1 and "Traceback" not in problem
    # Complete is what a call after the last rename leaves, or one whose failure does no harm.
    is_complete = not is_unchanged and trial.run("none", 0)[0] == 0 and _same(left, trial.content())
    if status < 0 or (status and not is_line):
        figures.count(label, "traceback or signal", bad=True, detail=f"{status} {problem[-300:]}")
    elif not is_unchanged and not is_complete:
        figures.count(label, "broken output", bad=True, detail=" ".join(left))
    elif status == 0 and is_unchanged:
        figures.count(label, "exit status 0", bad=True)
    else:
        figures.count(label, "refused" if is_unchanged else "complete", bad=False)


def _same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Same names, and contents of the same size: times and measurements differ."""
    return {name: len(data) // 64 for name, data in one.items()} == {
        name: len(data) // 64 for name, data in other.items()
    }
