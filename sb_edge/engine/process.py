"""Running a tool of the build or of the engine: its output line by line, and no child left behind."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sb_edge.util.errors import EngineError

TAIL = 200
"""How many of the last lines of a tool are kept for the error message."""


def run_tool(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> tuple[int, list[str]]:
    """Run `command` to its end; return its exit status (negative: the signal) and its last lines.

    Whatever ends the wait, Ctrl-C included, the child is stopped before this returns.

    Args:
        log: a file to which standard output and error are appended as they come.
        on_line: called with every line, as it comes.

    Raises:
        EngineError: the program cannot be started.
    """
    tail: deque[str] = deque(maxlen=TAIL)
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise EngineError("cannot be started", path=command[0], found=error.strerror) from None
    try:
        with (log or Path(os.devnull)).open("a", encoding="utf-8") as sink:
            for line in process.stdout or ():
                sink.write(line)
                tail.append(line.rstrip("\n"))
                if on_line is not None:
                    on_line(line)
        return process.wait(), list(tail)
    finally:
        stop(process)


def without_function(line: str) -> str:
    """A line of the engine's log without the name of the function that wrote it."""
    function, _, message = line.partition(": ")
    return message if message and " " not in function else line


def stop(process: subprocess.Popen[Any]) -> None:
    """End a child, if it still runs, and close its pipes."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
