"""Benchmark rows: one measurement each, under llama-bench's field names, in a file that survives a crash."""

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
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sb_edge.errors import OutputError
from sb_edge.files import atomic_output

Fill = Literal["real", "synthetic"]
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RowKey(NamedTuple):
    """What makes two measurements the same one: content of the model, settings, machine and engine."""

    model_sha256: str
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    flash_attn: int
    n_gen: int
    n_depth: int
    repetitions: int
    fill: str
    machine_id: str
    engine_key: str


class Row(BaseModel):
    """One measurement. The first block holds llama-bench's fields, the second block this project's own.

    Sizes are bytes, times nanoseconds unless the name says otherwise, speeds tokens per second (`_ts`).
    docs/benchmarks.md describes every field.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    build_commit: str
    cpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: Count
    model_n_params: Count
    n_batch: Count
    n_ubatch: Count
    n_threads: Count
    type_k: str
    type_v: str
    flash_attn: int
    n_prompt: Count
    n_gen: Count
    n_depth: Count
    test_time: str
    avg_ns: Count
    stddev_ns: Count
    avg_ts: Finite
    stddev_ts: Finite
    samples_ns: tuple[Count, ...]
    samples_ts: tuple[Finite, ...]

    model: str
    label: str
    repetitions: Count
    median_ts: Finite
    fill: Fill
    n_ctx_train: Count
    kv_bytes: Count
    state_bytes: Count
    rss_bytes: Count
    bytes_per_token: Count
    read_bandwidth: Finite
    roofline_fraction: Finite
    model_sha256: str
    machine_id: str
    engine_key: str

    @property
    def key(self) -> RowKey:
        """The identity under which a finished row is found again."""
        return RowKey(**{name: getattr(self, name) for name in RowKey._fields})

    @property
    def context_bytes(self) -> int:
        """KV cache and recurrent state together."""
        return self.kv_bytes + self.state_bytes

    @property
    def beyond_training(self) -> bool:
        """Whether the positions lie beyond those that the model was made for: a figure of speed only."""
        return 0 < self.n_ctx_train < self.n_depth + self.n_gen

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary in the order of the fields."""
        return self.model_dump(mode="json")


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

    def append(self, row: Row) -> None:
        """Add one row and return only when it is on the disk.

        Raises:
            OutputError: the device is full or failed; the file then still ends after the row before.
        """
        line = json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            self._write(line)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise OutputError(f"cannot be written: {error.strerror}", path=self.path) from error
        self.finished[row.key] = row

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
        rows: list[Row] = []
        good_bytes = 0
        with os.fdopen(os.dup(self._fd), "rb") as stream:
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                torn = not line.endswith(b"\n")
                if torn and _is_torn_row(line):
                    return _Content(rows, good_bytes, ends_without_newline=False)
                rows.append(self._parse(line, number))
                good_bytes += len(line)
                if torn:
                    return _Content(rows, good_bytes, ends_without_newline=True)
        return _Content(rows, good_bytes, ends_without_newline=False)

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            return Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OutputError(
                "is not a benchmark row",
                path=self.path,
                item=f"line {number}",
                found=f"{where}: {first['msg']}" if where else first["msg"],
                hint="choose another file for the results, or remove that line",
            ) from None

    def _repair(self, content: _Content) -> None:
        os.ftruncate(self._fd, content.good_bytes)
        os.lseek(self._fd, 0, os.SEEK_END)
        if content.ends_without_newline:
            self._write(b"\n")
        os.fsync(self._fd)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


def _is_torn_row(line: bytes) -> bool:
    """Whether a line without newline is the beginning of a row: no other text is ever thrown away."""
    if not line.startswith(ROW_START[: len(line)]):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


SCALAR_FIELDS = tuple(name for name in Row.model_fields if not name.startswith("samples_"))
"""The columns of the CSV file: all fields but the lists."""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV, one column a field, without the lists of samples (as llama-bench does).

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
    from sb_edge.bench.tables import markdown_table

    with atomic_output(Path(path)) as partial:
        partial.write_text(markdown_table(rows), encoding="utf-8")
