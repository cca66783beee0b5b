"""`sb-edge demo`, shortened: from the default model to the report."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def demo(folder: Path) -> str:
    command = [sys.executable, "-m", "sb_edge", "demo", "--output", str(folder), "--depths", "0,256"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_answers_measures_and_reports(tmp_path: Path) -> None:
    printed = demo(tmp_path)
    assert "Paris" in printed
    found = dict(re.findall(r"perplexity of (default|default-base): ([\d.]+)", printed))
    assert 1 < float(found["default-base"]) < float(found["default"]) < 4 * float(found["default-base"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Paris" in page
    assert "taught these layers" in page
    assert not re.search(r'(?:src|href)="https?://', page)

    rows = (tmp_path / "decode.jsonl").read_bytes()
    assert len(rows.splitlines()) == 4
    demo(tmp_path)
    assert (tmp_path / "decode.jsonl").read_bytes() == rows
