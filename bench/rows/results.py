"""Files of benchmark rows: JSON Lines that survive a crash, and JSON, CSV and Markdown for others."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from pydantic import ValidationError

from sb_edge.bench.rows.row import Row, RowKey
from sb_edge.util.errors import OutputError
from sb_edge.util.files import atomic_output

ROW_START = b'{"' + next(iter(Row.model_fields)).encode() + b'":'
"""How every line of a results file begins; what a torn line is recognised by."""


@dataclass(frozen=True)
class _Content:
    rows: list[Row]
    good_bytes: int
    """Length of the file up to the last complete line."""
    ends_without_newline: bool


class ResultsFile:
    """A JSON Lines file of rows to which one process appends, each row synced before the next.

    A process killed in the middle of a write leaves a torn last line; opening the file drops it, so that its
    measurement is repeated. Use as a context manager.

    Args:
        path: the file, created when absent.

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
        """Add rows, those measured in turns together, and return only when they are on the disk.

        Raises:
            OutputError: the device is full or failed; the file then still ends after the row before.
        """
        lines = b"".join(_line(row) for row in rows)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            self._write(lines)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise OutputError(f"cannot be written: {error.strerror}", path=self.path) from error
        self.finished.update((row.key, row) for row in rows)

    def close(self) -> None:
        """Close the file and let another run use it."""
        os.close(self._fd)

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                hint="wait for it or choose another file",
            ) from None

    def _read(self) -> _Content:
        with os.fdopen(os.dup(self._fd), "rb") as stream:
            stream.seek(0)
            return _parse_rows(stream, self.path)

    def _repair(self, content: _Content) -> None:
        os.ftruncate(self._fd, content.good_bytes)
        os.lseek(self._fd, 0, os.SEEK_END)
        if content.ends_without_newline:
            self._write(b"\n")
        os.fsync(self._fd)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


def _line(row: Row) -> bytes:
    return json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, which another process may be writing; a torn last line is left out.

    Raises:
        OutputError: not there, not readable, or not a results file.
    """
    try:
        with Path(path).open("rb") as stream:
            return _parse_rows(stream, path).rows
    except OSError as error:
        raise OutputError(f"cannot be read: {error.strerror}", path=path) from error


def _parse_rows(stream: IO[bytes], path: Path) -> _Content:
    rows: list[Row] = []
    good_bytes = 0
    for number, line in enumerate(stream, start=1):
        torn = not line.endswith(b"\n")
        if torn and _is_torn_row(line):
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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OutputError(
            "is not a benchmark row",
            path=path,
            item=f"line {number}",
            found=f"{where}: {first['msg']}" if where else first["msg"],
            hint="choose another file for the results, or remove that line",
        ) from None


def _is_torn_row(line: bytes) -> bool:
    """Whether a line without newline is the beginning of a row: no other text is ever thrown away."""
    if not line.startswith(ROW_START[: len(line)]):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


SCALAR_FIELDS = tuple(
    name for name in Row.model_fields if name not in ("samples_ns", "samples_ts", "fit_depths", "machine")
)
"""The columns of the CSV file: all fields but the lists and the machine."""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV, one column a field, without lists (as llama-bench does) and machine.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_output(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, SCALAR_FIELDS, extrasaction="ignore", quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(row.to_json() for row in rows)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as one JSON array.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_output(Path(path)) as partial:
        partial.write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n", encoding="utf-8")


def write_markdown(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a Markdown table.

    Raises:
        OutputError: the file cannot be written.
    """
    from sb_edge.bench.report.row_tables import markdown_table

    with atomic_output(Path(path)) as partial:
        partial.write_text(markdown_table(rows), encoding="utf-8")
