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
        Writer("init", ("init", "tiny", "-o", "OUT"), is_folder=True),
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
        """What is in the folder, by name."""
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
            chosen = every if count <= per_call else chance.sample(every, per_call)
            for nth in sorted({*chosen, count} - {0}):
                error = chance.choice(errors)
                label = f"{name} {nth} of {count} ({errno.errorcode[error]})"
                _judge(trial, label, trial.run(call, nth, error), figures)
    return figures


def _judge(trial: Trial, label: str, outcome: tuple[int, int, str], figures: Figures) -> None:
    status, _, problem = outcome
    if status == 0:
        # A call whose failure does no harm, such as a map that is read instead.
        whole = trial.content()
        is_sound = trial.run("none", 0)[0] == 0 and _same(whole, trial.content())
        figures.count(label, "did not matter" if is_sound else "exit status 0", bad=not is_sound)
    elif status < 0 or "Traceback" in problem or problem.count("error: ") != 1:
        figures.count(label, "traceback or signal", bad=True, detail=f"{status} {problem[-300:]}")
    elif not trial.is_unchanged():
        figures.count(label, "broken output", bad=True, detail=" ".join(trial.content()))
    else:
        figures.count(label, "refused", bad=False)


def _same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Same names, and contents of the same size: times and measurements differ."""
    return {name: len(data) // 64 for name, data in one.items()} == {
        name: len(data) // 64 for name, data in other.items()
    }
