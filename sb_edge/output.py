"""What commands print: `--json FILE`, one machine-readable document beside what a person reads, and sizes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from sb_edge.files import atomic_output


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
