"""The command line as tests call it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sb_edge.cli import main

SB_EDGE = [sys.executable, "-m", "sb_edge"]


def exit_code(*arguments: object) -> int:
    """`sb-edge` in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of error that `sb-edge` in this process prints for bad input."""
    assert exit_code(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def sb_edge(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`sb-edge` in a process of its own."""
    command = [*SB_EDGE, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
