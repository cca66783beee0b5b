"""Files of benchmark rows: crash-safe JSON Lines, CSV and Markdown."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from sb_edge.bench.rows.row import Row, RowKey
from sb_edge.bench.rows.row_tables import results_table
from sb_edge.util.errors import OutputError
from sb_edge.util.files import atomic_output, write_all
from sb_edge.util.input_files import open_input
from sb_edge.util.progress import note
from sb_edge.util.validation import first_problem

ROW_START = b'{"' + next(iter(Row.model_fields)).encode() + b'":'
"""Beginning of every line of a results file; identifies a torn line."""


@dataclass(frozen=True)
class _Content:
    rows: list[Row]
    good_bytes: int
    """Length of the file up to the end of the last complete line."""
    ends_without_newline: bool


class ResultsFile:
    """A JSON Lines file of rows; one process appends, and each append is synced to disk.

    A process killed during a write leaves a torn last line. Opening the file removes that line, and the
    measurement is repeated. Use as a context manager.

    Args:
        path: the file; created if absent.

    Raises:
        OutputError: not writable, in use by another run, or not a results file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputError(f"cannot be opened: {error.strerror}", path=self.path) from error
        try:
            self._lock()
            content = self._read()
            self._repair(content)
        except BaseException:
            os.close(self._fd)
            raise
        self.finished: dict[RowKey, Row] = {row.key: row for row in content.rows}

    def append(self, *rows: Row) -> None:
        """Append rows (interleaved ones together) and sync them to disk.

        Raises:
            OutputError: the device is full or failed; the file then ends with the previous row.
        """
        lines = b"".join(_line(row) for row in rows)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            write_all(self._fd, lines)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise OutputError(f"cannot be written: {error.strerror}", path=self.path) from error
        self.finished.update((row.key, row) for row in rows)

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._fd)

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(f"cannot be locked: {error.strerror}", path=self.path) from error
            raise OutputError(
                "another benchmark is writing to this file",
                path=self.path,
                hint="wait for it to finish, or choose another file",
            ) from None

    def _read(self) -> _Content:
        with os.fdopen(os.dup(self._fd), "rb") as stream:
            stream.seek(0)
            return _parse_rows(stream, self.path)

    def _repair(self, content: _Content) -> None:
        os.ftruncate(self._fd, content.good_bytes)
        os.lseek(self._fd, 0, os.SEEK_END)
        if content.ends_without_newline:
            write_all(self._fd, b"\n")
        os.fsync(self._fd)


def _line(row: Row) -> bytes:
    return json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read_rows(path: Path) -> list[Row]:
    """Read a results file, even while another process writes it; a torn last line is left out, and said.

    Raises:
        OutputError: the file is missing, not readable, or not a results file.
    """
    try:
        with open_input(Path(path), OutputError) as stream:
            return _parse_rows(stream, path).rows
    except OSError as error:
        raise OutputError(f"cannot be read: {error.strerror}", path=path) from error


def _parse_rows(stream: IO[bytes], path: Path) -> _Content:
    rows: list[Row] = []
    good_bytes = 0
    for number, line in enumerate(stream, start=1):
        torn = not line.endswith(b"\n")
        if torn and _is_torn_row(line):
            note(f"{path}: line {number} is incomplete and left out")
            return _Content(rows, good_bytes, ends_without_newline=False)
        rows.append(_parse_row(line, number, path))
        good_bytes += len(line)
        if torn:
            return _Content(rows, good_bytes, ends_without_newline=True)
    return _Content(rows, good_bytes, ends_without_newline=False)


def _parse_row(line: bytes, number: int, path: Path) -> Row:
    try:
        return Row.model_validate_json(line)
    except ValidationError as error:
        raise OutputError(
            "is not a benchmark row",
            path=path,
            item=f"line {number}",
            found=first_problem(error).line,
            hint="choose another results file, or remove this line",
        ) from None


def _is_torn_row(line: bytes) -> bool:
    """Whether a line without newline is an incomplete row; no other text may be removed."""
    if not line.startswith(ROW_START[: len(line)]):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    except RecursionError:  # too deep for a row
        pass
    return False


SCALAR_FIELDS = tuple(
    name
    for name in Row.model_fields
    if name not in ("samples_ns", "samples_ts", "fit_depths", "machine", "phone")
)
"""Columns of the CSV file: all fields except lists, the machine and the phone's own."""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV with the columns `SCALAR_FIELDS`; llama-bench leaves out lists, too.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_output(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, SCALAR_FIELDS, extrasaction="ignore", quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(row.to_json() for row in rows)


def write_markdown(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a Markdown table.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_output(Path(path)) as partial:
        partial.write_text(results_table(rows).markdown(), encoding="utf-8")
