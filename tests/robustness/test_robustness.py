"""A minute of the robustness suite, from its fixed seeds; `make robustness` runs the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parent


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_minute_of_hostile_files_and_failing_calls() -> None:
    command = [sys.executable, SUITE, "--mutants", "240", "--states", "40", "--calls", "1"]
    command += ["--edits", "0"]  # tests/server has some
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| mutants of GGUFs | 240 |" in done.stdout
    assert "| state files | 40 | 40 refused |" in done.stdout
