"""Output of commands: text for the terminal, `--json FILE`, and numbers with their units."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sb_edge.util.files import atomic_output


def format_bytes(count: int) -> str:
    """Bytes with a binary unit, at most four digits before the point.

    >>> format_bytes(67 * 2**20)
    '67.0 MiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def to_json(value: Any) -> Any:
    """A result as values that `json.dumps` takes.

    A class with a method `to_json` decides for itself; other dataclasses become a dictionary of their fields.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return json_fields(value)
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


def json_fields(value: Any, *names: str) -> dict[str, Any]:
    """The named attributes of a dataclass in JSON form; without names all its fields."""
    names = names or tuple(field.name for field in fields(value))
    return {name: to_json(getattr(value, name)) for name in names}


def write_json(path: Path, value: Any) -> None:
    """Write a result as an indented JSON file.

    Raises:
        OutputError: the file cannot be written.
        ValueError: the result contains NaN or infinity.
    """
    with atomic_output(path) as partial:
        partial.write_text(_json_text(value), encoding="utf-8")


def _json_text(value: Any) -> str:
    return json.dumps(to_json(value), indent=2, allow_nan=False) + "\n"


def emit(result: Any, json_target: str | None, render: Callable[[Console], None]) -> None:
    """Print a result for a person, and write it as JSON if `--json` was given.

    Args:
        result: converted by `to_json`; NaN and infinity raise ValueError.
        json_target: None, a file name, or "-" for standard output, where nothing else is then printed.
        render: prints the result on the given console.
    """
    if json_target == "-":
        sys.stdout.write(_json_text(result))
        return
    if json_target is not None:
        write_json(Path(json_target), result)
    render(Console())


def format_depth(depth: int) -> str:
    """A number of tokens with the suffix k or M if it is a multiple of 1024 or 1048576.

    >>> [format_depth(depth) for depth in (0, 100, 4096, 262144, 1048576)]
    ['0', '100', '4k', '256k', '1M']
    """
    if depth and depth % 2**20 == 0:
        return f"{depth >> 20}M"
    return f"{depth // 1024}k" if depth and depth % 1024 == 0 else str(depth)


def format_duration(ns: int) -> str:
    """Nanoseconds as a time with unit, about three digits.

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
