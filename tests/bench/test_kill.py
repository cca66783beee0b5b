"""A run is killed again and again, by SIGKILL, and ends with every row once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sb_edge.bench.rows.results import read_rows

pytestmark = pytest.mark.engine

DEPTHS = [0, 40, 80, 120]
KILLS = [(0, 0.0), (1, 0.0), (4, 0.1)]
"""Each run is killed this many seconds after the file has that many rows."""


SCRIPT = """
import sys
from sb_edge.bench.speed import bandwidth
from sb_edge.cli import main
bandwidth.BUFFER_BYTES = 1 << 24  # as in conftest.py: fast
main(sys.argv[1:])
"""


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_a_killed_run_resumes_without_losing_or_doubling_rows(
    kind: str, tiny_gguf: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    work = ["-n", "2"] if kind == "decode" else ["-p", "16", "--fit-beyond", "80"]
    command = [
        sys.executable, "-c", SCRIPT, "bench", kind, str(tiny_gguf), str(tiny_llama), "-t", "1", *work,
        "--depths", ",".join(map(str, DEPTHS)), "--fill", "synthetic", "-r", "2", "-o", str(output),
        "--json", "-",
    ]  # fmt: skip
    before: list[bytes] = []
    for n_rows, delay in KILLS:
        kill_after(command, output, n_rows, delay)
        killed = output.read_bytes()
        kept = killed[: killed.rfind(b"\n") + 1].splitlines()
        assert len(kept) >= n_rows
        assert kept[: len(before)] == before
        before = kept
        with output.open("ab") as file:  # what a kill in the middle of a write leaves
            file.write(b'{"build_commit":"0c1' if killed.endswith(b"\n") or not killed else b"")
    finished = subprocess.run(command, capture_output=True, check=False, text=True)
    assert finished.returncode == 0, finished.stderr

    lines = output.read_bytes().splitlines()
    assert lines[: len(before)] == before
    rows = read_rows(output)
    # The fit for the first depth that is fitted takes a quarter and a half of it besides.
    fitted = {10, 20} if kind == "prefill" else set()
    expected = [(depth, "tiny") for depth in DEPTHS]
    expected += [(depth, "llama") for depth in {*DEPTHS, *fitted}]
    assert sorted((row.n_depth, row.model) for row in rows) == sorted(expected)
    shown = [(row["n_depth"], row["model"] == "llama") for row in json.loads(finished.stdout)]
    assert shown == sorted((depth, model == "llama") for depth, model in expected)
    assert not (tmp_path / "rows.jsonl.contexts").exists()
    if kind == "prefill":
        sources = {(row.model, row.n_depth): (row.fill, row.ttft_source) for row in rows}
        assert sources["tiny", 120] == ("real", "measured")
        assert sources["llama", 80] == ("synthetic", "fitted")
        assert sources["llama", 120] == ("fitted", "fitted")


def kill_after(command: list[str], output: Path, n_rows: int, delay: float) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not output.exists() or output.read_bytes().count(b"\n") < n_rows:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    assert process.stderr is not None
    process.stderr.close()
