"""Compare conversion with copying: speed, and peak memory for two model sizes."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.arch.config import PRESETS
from sb_edge.convert.checkpoint.folder import SINGLE_FILE
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.util.errors import OutputError
from sb_edge.util.files import require_free_space
from sb_edge.util.output import json_fields

_CONVERT = """
import sys
from pathlib import Path
from sb_edge.cli import main
try:
    main(sys.argv[2:])
finally:
    Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
"""


@dataclass(frozen=True)
class ConvertSpeed:
    """Results for one checkpoint.

    Attributes:
        size_bytes: size of the checkpoint's weights.
        copy_seconds: median time of `cp` and sync of model.safetensors.
        convert_seconds: median time of an `sb-edge convert` process with start-up and sync.
        peak_rss_bytes: largest peak memory of the converting processes.
    """

    size_bytes: int
    copy_seconds: float
    convert_seconds: float
    peak_rss_bytes: int

    @property
    def ratio(self) -> float:
        """Speed of conversion over speed of copying."""
        return self.copy_seconds / self.convert_seconds

    def to_json(self) -> dict[str, Any]:
        """All fields and the ratio."""
        return json_fields(self) | {"ratio": self.ratio}


def run(
    size_gib: float = 2.0, *, repetitions: int = 3, outtype: str = "auto", folder: Path | None = None
) -> list[ConvertSpeed]:
    """Copy and convert bf16 checkpoints of about `size_gib` and a quarter of it, interleaved.

    Args:
        size_gib: size of the larger checkpoint, GiB; a checkpoint has at least two layers.
        repetitions: repetitions of each.
        outtype: type of the converted weights; "auto" keeps bf16.
        folder: working folder with three times the free space; None: the folder for temporary files.

    Raises:
        OutputError: not enough space, or a conversion failed.
    """
    base = folder or Path(tempfile.gettempdir())
    require_free_space(base, int(3 * size_gib * 2**30), "the checkpoint and its copies")
    with tempfile.TemporaryDirectory(dir=base, prefix="sb-edge-convert-") as work:
        return [_measure(Path(work) / f"{part}", size_gib / part, repetitions, outtype) for part in (4, 1)]


def _measure(folder: Path, size_gib: float, repetitions: int, outtype: str) -> ConvertSpeed:
    folder.mkdir()
    checkpoint, copied, converted = folder / "checkpoint", folder / "copy", folder / "converted.gguf"
    size = write_random_checkpoint(
        PRESETS["1b"].model_copy(update=_layers_and_vocabulary(size_gib)),
        checkpoint,
        attention_bias=False,
        max_shard_bytes=2**62,
    )
    status = folder / "status"
    copy = ["cp", str(checkpoint / SINGLE_FILE), str(copied)]
    options = ["convert", str(checkpoint), "--outtype", outtype, "--outfile", str(converted)]
    convert = [sys.executable, "-c", _CONVERT, str(status), *options]
    copy_times, convert_times, peaks = [], [], []
    for _ in range(repetitions):
        copy_times.append(_time(copy, copied))
        convert_times.append(_time(convert, converted))
        peaks.append(_peak_rss(status))
    shutil.rmtree(folder)
    return ConvertSpeed(size, statistics.median(copy_times), statistics.median(convert_times), max(peaks))


def _layers_and_vocabulary(size_gib: float) -> dict[str, int]:
    """Number of 1b layers for this size, and a small vocabulary."""
    layer_bytes = 2 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 8192)
    return {"num_hidden_layers": max(int(size_gib * 2**30) // layer_bytes, 2), "vocab_size": 4096}


def _time(command: Sequence[str], output: Path) -> float:
    """Run a command on a synced file system; return the seconds until its output is synced."""
    os.sync()
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OutputError("a command failed", item=Path(command[0]).name, found=result.stderr.strip()[-200:])
    with output.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    output.unlink()
    return seconds


def _peak_rss(status: Path) -> int:
    """VmHWM of the process, bytes; unlike getrusage it excludes the parent's memory."""
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(match[1]) * 1024 if match else 0
