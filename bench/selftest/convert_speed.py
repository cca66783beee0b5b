"""Conversion against plain copying: speed, and whether memory grows with the model."""

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

from sb_edge.arch.config import PRESETS
from sb_edge.convert.checkpoint.folder import SINGLE_FILE
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.util.errors import OutputError
from sb_edge.util.files import require_free_space

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
    """Medians for one checkpoint.

    Attributes:
        size_bytes: of the checkpoint's weights.
        copy_seconds: `cp` of model.safetensors and a sync of the copy.
        convert_seconds: `sb-edge convert` in a process of its own, start-up and sync included.
        peak_rss_bytes: of the converting process, the largest of all runs.
    """

    size_bytes: int
    copy_seconds: float
    convert_seconds: float
    peak_rss_bytes: int

    @property
    def ratio(self) -> float:
        """Speed of conversion over speed of copying."""
        return self.copy_seconds / self.convert_seconds


def run(
    size_gib: float = 2.0, *, repetitions: int = 3, outtype: str = "auto", folder: Path | None = None
) -> list[ConvertSpeed]:
    """Measure bf16 checkpoints of about `size_gib` and a quarter of it, copying and converting in turn.

    Args:
        size_gib: of the larger checkpoint, GiB; none is smaller than a quarter of one.
        repetitions: of each; medians are reported.
        outtype: of the conversion; "auto" keeps bf16.
        folder: where to work; default: the folder for temporary files. It needs three times the size.

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
    """The 1b preset's layers, as many as fit beside a small vocabulary."""
    layer_bytes = 2 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 8192)
    return {"num_hidden_layers": max(int(size_gib * 2**30) // layer_bytes, 2), "vocab_size": 4096}


def _time(command: Sequence[str], output: Path) -> float:
    """Seconds until the output is on the device, nothing else waiting to be written."""
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
    """VmHWM that the process left: unlike getrusage's figure it does not include what its parent had."""
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(match[1]) * 1024 if match else 0
