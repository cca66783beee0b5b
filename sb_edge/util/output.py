"""What commands print: `--json FILE`, one machine-readable document beside what a person reads, and sizes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from sb_edge.util.files import atomic_output


def format_bytes(count: int) -> str:
    """Bytes in the binary unit that leaves at most four digits before the point.

    >>> format_bytes(67 * 2**20)
    '67.0 MiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def emit(document: Any, json_target: str | None, render: Callable[[Console], None]) -> None:
    """Print `render` for a person and write `document` as JSON where `--json` says.

    Args:
        document: anything `json.dumps` takes; NaN and infinity are refused.
        json_target: None, a file name, or "-": standard output, and then nothing else is printed there.
        render: prints the human form on the console that it is given.
    """
    text = None if json_target is None else json.dumps(document, indent=2, allow_nan=False) + "\n"
    if json_target == "-":
        sys.stdout.write(text or "")
        return
    if json_target is not None and text is not None:
        with atomic_output(Path(json_target)) as partial:
            partial.write_text(text, encoding="utf-8")
    render(Console())


def format_depth(depth: int) -> str:
    """A depth as people say it.

    >>> [format_depth(depth) for depth in (0, 100, 4096, 262144, 1048576)]
    ['0', '100', '4k', '256k', '1M']
    """
    if depth and depth % 2**20 == 0:
        return f"{depth >> 20}M"
    return f"{depth // 1024}k" if depth and depth % 1024 == 0 else str(depth)


def format_duration(ns: int) -> str:
    """A time in three digits or so.

    >>> [format_duration(round(seconds * 1e9)) for seconds in (0.0123, 1.5, 75, 3600, 36000)]
    ['12 ms', '1.50 s', '75.0 s', '60.0 min', '10.0 h']
    """
    seconds = ns / 1e9
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
