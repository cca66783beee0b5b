"""JSON files from outside whose content must be an object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb_edge.util.errors import SbEdgeError
from sb_edge.util.input_files import read_input
from sb_edge.util.text_files import decode_text


def read_json_object(path: Path, error: type[SbEdgeError], *, absent: str, hint: str) -> dict[str, Any]:
    """Read a JSON file whose content is an object.

    Args:
        path: the file.
        error: kind of error to raise.
        absent: hint for a file that does not exist.
        hint: hint for a file that is not valid.

    Raises:
        SbEdgeError: of kind `error`: not found, not UTF-8, not valid JSON (the line is named), no object.
    """
    try:
        data = read_input(path, error)
    except FileNotFoundError:
        raise error("not found", path=path, hint=absent) from None
    return parse_json_object(data, path, error, hint=hint)


def parse_json_object(
    data: bytes,
    path: Path,
    error: type[SbEdgeError],
    *,
    item: str | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    hint: str = "fetch this file again",
) -> dict[str, Any]:
    """Parse bytes of a file as a JSON object.

    Args:
        data: UTF-8 text.
        path: the file, for messages.
        error: kind of error to raise.
        item: name of this part of the file; None for a whole file.
        pairs: `json.loads`'s `object_pairs_hook`.
        hint: hint for data that is not valid.

    Raises:
        SbEdgeError: of kind `error`: not UTF-8, not valid JSON (the line is named) or not an object.
    """
    try:
        document = json.loads(decode_text(data, path, error), object_pairs_hook=pairs)
    except json.JSONDecodeError as problem:
        place = item or f"line {problem.lineno}"
        raise error("is not valid JSON", path=path, item=place, found=problem.msg, hint=hint) from None
    except (ValueError, RecursionError) as problem:  # a number of too many digits; too deep
        raise error("is not valid JSON", path=path, item=item, found=str(problem), hint=hint) from None
    if not isinstance(document, dict):
        raise error("is not a JSON object", path=path, item=item, found=type(document).__name__)
    return document
