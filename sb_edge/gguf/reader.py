"""Read the header of a GGUF: keys and tensor table, without the data.

GGUF files are untrusted. Every count, length and offset is checked against the file before use, as in the
engine (ggml/src/gguf.cpp), with tighter limits where real files stay far below them: a crafted file of a few
bytes can neither hang this reader nor make it allocate memory.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sb_edge.gguf.types import ARRAY, BOOL, GGML_TYPES, SCALARS, STRING
from sb_edge.util.errors import GgufError

_MAX_HEADER = 128 << 20
_MAX_ARRAY = 1 << 24
_MAX_KEY = 65535
_MAX_NAME = 63
_MAX_DIMS = 4
_READ_AHEAD = 1 << 20
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a GGUF.

    Attributes:
        name: name in the file.
        shape: numpy's order, [out, in] for a matrix; the file has the reverse.
        type: ggml's name of the type.
        nbytes: size of the data, bytes.
        offset: start of the data, bytes from the start of `file`.
        file: the file of a split model that holds the tensor.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    offset: int
    file: Path


@dataclass(frozen=True)
class GgufHeader:
    """Keys and tensors of a GGUF, including all parts of a split one.

    Attributes:
        arch: `general.architecture`.
        metadata: values by key; arrays of numbers are read-only numpy arrays, arrays of strings are lists.
        tensors: entries in file order.
        files: the file, or all parts of a split one.
    """

    arch: str
    metadata: dict[str, Any]
    tensors: list[TensorEntry]
    files: list[Path]

    @property
    def n_params(self) -> int:
        """Number of values in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Size of all tensors, bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def integer(self, key: str, default: int | None = None) -> int:
        """Value of an integer key of the architecture: `integer("block_count")` reads `<arch>.block_count`.

        Raises:
            GgufError: the key is absent and has no default, or its value is not an integer.
        """
        name = f"{self.arch}.{key}"
        value = self.metadata.get(name, default)
        if value is None:
            raise GgufError("key not found", path=self.files[0], item=name)
        if not isinstance(value, int) or isinstance(value, bool):
            found = type(value).__name__ if isinstance(value, np.ndarray | list) else repr(value)
            raise GgufError("is not an integer", path=self.files[0], item=name, found=found)
        return value


@dataclass(frozen=True)
class FileLayout:
    """Positions of the sections of one GGUF file, bytes from its start, to copy them without decoding.

    Attributes:
        version: version of the format.
        n_tensors: number of tensors in this file.
        keys: begin and end of each key's entry (name, type and value), by name.
        table: begin and end of the tensor table, whose offsets count from `data`.
        data: begin of the first tensor's data.
        alignment: alignment of the tensors' data, bytes.
    """

    version: int
    n_tensors: int
    keys: dict[str, tuple[int, int]]
    table: tuple[int, int]
    data: int
    alignment: int


def read_layout(path: Path) -> FileLayout:
    """Find the sections of one GGUF file, which may be one part of a split model.

    Raises:
        GgufError: not a GGUF, truncated or corrupt.
    """
    return _read_file(Path(path))[2]


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF. The first part of a split model stands for all parts.

    Raises:
        GgufError: not a GGUF, truncated or corrupt; a part is missing, or `path` is not the first one.
    """
    path = Path(path)
    metadata, tensors, _ = _read_file(path)
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= 65535:
        raise GgufError("is not a number of parts", path=path, item="split.count", found=repr(count)[:40])
    others = _other_parts(path, metadata, count) if count > 1 else []
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise GgufError("has no architecture", path=path, item="general.architecture")
    if not others:
        return GgufHeader(arch, metadata, tensors, [path])
    files = [path, *others]
    for number, file in enumerate(files[1:], 1):
        part, more, _ = _read_file(file)
        if part.get("split.no") != number or part.get("split.count") != count:
            raise GgufError(
                "is not the part that its name says",
                path=file,
                item="split.no",
                found=f"{part.get('split.no')} of {part.get('split.count')}",
                expected=f"{number} of {count}",
            )
        tensors += more
    _check_parts(path, metadata, tensors)
    return GgufHeader(arch, metadata, tensors, files)


def _other_parts(path: Path, metadata: dict[str, Any], count: int) -> list[Path]:
    match = _SPLIT_NAME.fullmatch(path.name)
    first = f"{match[1] if match else 'NAME'}-00001-of-{count:05d}.gguf"
    if metadata.get("split.no") != 0 or path.name != first:
        raise GgufError(
            "is not the first part of a split model", path=path, expected=first, hint="give the first part"
        )
    parts = [
        path.with_name(f"{first.split('-00001-of-')[0]}-{number:05d}-of-{count:05d}.gguf")
        for number in range(2, count + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise GgufError("a part is missing", path=part, hint="fetch this file")
    return parts


def _check_parts(path: Path, metadata: dict[str, Any], tensors: list[TensorEntry]) -> None:
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise GgufError("a tensor is in two parts", path=path)
    total = metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise GgufError(
            "has a wrong number of tensors",
            path=path,
            item="split.tensors.count",
            found=len(tensors),
            expected=total,
        )


class _Cursor:
    """Reads a header in order; checks every read against the file size first."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._limit = min(size, _MAX_HEADER)
        self._size = size
        self._data = b""
        self.position = 0

    def error(
        self, message: str, item: str | None = None, found: object = None, expected: object = None
    ) -> GgufError:
        return GgufError(
            message, path=self._path, item=item, found=found, expected=expected, hint="fetch this file again"
        )

    def need(self, count: int, item: str, each: int = 1) -> None:
        """Refuse if fewer than `count` items of at least `each` bytes remain in the file."""
        left = self._limit - self.position
        if count * each > left:
            if self._limit < self._size:
                raise self.error("the header is too large", item, f"more than {_MAX_HEADER} bytes")
            raise self.error("is truncated or corrupt", item, f"{left} bytes left", f"{count * each}")

    def take(self, count: int, item: str) -> bytes:
        self.need(count, item)
        end = self.position + count
        if end > len(self._data):
            ahead = max(end - len(self._data), _READ_AHEAD, len(self._data))
            self._data += self._file.read(min(ahead, self._limit - len(self._data)))
            if end > len(self._data):
                raise self.error("is truncated", item)
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def number(self, layout: str, item: str) -> int:
        value: int = struct.unpack("<" + layout, self.take(struct.calcsize(layout), item))[0]
        return value

    def texts(self, count: int, item: str) -> list[str]:
        """Strings; as `text`, but those that have been read already take no further calls."""
        data = self._data
        found: list[str] = []
        while len(found) < count:
            begin = self.position + 8
            end = begin + int.from_bytes(data[self.position : begin], "little")
            if end > len(data):
                found.append(self.text(item))
                data = self._data
            else:
                self.position = end
                found.append(data[begin:end].decode("utf-8", "replace"))
        return found

    def text(self, item: str, limit: int | None = None) -> str:
        """A string; with a limit it is a name, which must be short and valid UTF-8."""
        length = self.number("Q", item)
        if limit is not None and length > limit:
            raise self.error("has a name that is too long", item, f"{length} bytes", f"at most {limit}")
        data = self.take(length, item)
        if limit is None:
            return data.decode("utf-8", errors="replace")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("has a name that is not valid UTF-8", item, repr(data[:40])) from None


def _read_file(path: Path) -> tuple[dict[str, Any], list[TensorEntry], FileLayout]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _parse(_Cursor(file, path, size), path, size)
    except FileNotFoundError:
        raise GgufError("not found", path=path, hint="give a GGUF file") from None
    except IsADirectoryError:
        raise GgufError("is a folder", path=path, expected="a GGUF file") from None


def _parse(cursor: _Cursor, path: Path, size: int) -> tuple[dict[str, Any], list[TensorEntry], FileLayout]:
    if size < 24 or cursor.take(4, "magic") != b"GGUF":
        raise GgufError("is not a GGUF file", path=path, expected="GGUF in its first four bytes")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0
        raise GgufError(
            "is big-endian" if swapped else "has an unsupported version",
            path=path,
            item="version",
            found=hex(version) if swapped else version,
            expected="2 or 3, little-endian",
        )
    n_tensors, n_keys = cursor.number("Q", "number of tensors"), cursor.number("Q", "number of keys")
    cursor.need(n_keys, "number of keys", 8 + 1 + 4 + 1)
    cursor.need(n_tensors, "number of tensors", 8 + 1 + 4 + 4 + 8)
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for index in range(n_keys):
        begin = cursor.position
        key = cursor.text(f"key {index}", _MAX_KEY)
        if not key or key in metadata:
            raise cursor.error("is listed twice" if key else "has no name", key or f"key {index}")
        metadata[key] = _value(cursor, key)
        spans[key] = begin, cursor.position
    begin, alignment = cursor.position, _alignment(cursor, metadata)
    tensors = _tensors(cursor, path, size, n_tensors, alignment)
    table = begin, cursor.position
    layout = FileLayout(version, n_tensors, spans, table, padded(cursor.position, alignment), alignment)
    return metadata, tensors, layout


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("I", key)
    if kind == STRING:
        return cursor.text(key)
    if kind == ARRAY:
        return _array(cursor, key)
    if kind not in SCALARS:
        raise cursor.error("has an unknown type", key, kind)
    value = np.frombuffer(cursor.take(SCALARS[kind].itemsize, key), SCALARS[kind])[0].item()
    return bool(value) if kind == BOOL else value


def _array(cursor: _Cursor, key: str) -> Any:
    kind, count = cursor.number("I", key), cursor.number("Q", key)
    if kind == ARRAY:
        raise cursor.error("is an array of arrays", key)  # the engine refuses them too
    if kind != STRING and kind not in SCALARS:
        raise cursor.error("is an array of an unknown type", key, kind)
    if count > _MAX_ARRAY:
        raise cursor.error("has too many elements", key, count, f"at most {_MAX_ARRAY}")
    if kind == STRING:
        cursor.need(count, key, 8)
        return cursor.texts(count, key)
    cursor.need(count, key, SCALARS[kind].itemsize)
    values = np.frombuffer(cursor.take(count * SCALARS[kind].itemsize, key), SCALARS[kind])
    return values != 0 if kind == BOOL else values


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment < 2**31 or alignment & (alignment - 1):
        raise cursor.error("is not a power of two", "general.alignment", repr(alignment)[:40])
    return alignment


def _tensors(cursor: _Cursor, path: Path, size: int, count: int, alignment: int) -> list[TensorEntry]:
    described: dict[str, tuple[tuple[int, ...], str, int]] = {}
    end = 0  # end of the data so far, relative to its begin
    for index in range(count):
        name = cursor.text(f"tensor {index}", _MAX_NAME)
        if name in described:
            raise cursor.error("is listed twice", name)
        shape, type_name, nbytes = _describe_tensor(cursor, name)
        offset = cursor.number("Q", name)
        if offset != end:
            raise cursor.error("has the wrong offset", name, f"offset {offset}", end)
        described[name] = shape, type_name, nbytes
        end += padded(nbytes, alignment)
    start = padded(cursor.position, alignment)
    entries = []
    for name, (shape, type_name, nbytes) in described.items():
        if start + nbytes > size:
            raise cursor.error("is truncated", name, f"{size} bytes", f"{start + nbytes} for this tensor")
        entries.append(TensorEntry(name, shape, type_name, nbytes, start, path))
        start += padded(nbytes, alignment)
    return entries


def _describe_tensor(cursor: _Cursor, name: str) -> tuple[tuple[int, ...], str, int]:
    n_dims = cursor.number("I", name)
    if n_dims > _MAX_DIMS:
        raise cursor.error("has too many dimensions", name, n_dims, f"at most {_MAX_DIMS}")
    shape = tuple(cursor.number("Q", name) for _ in range(n_dims))
    if prod(shape) >= 2**63:
        raise cursor.error("is impossibly large", name, list(shape))
    number = cursor.number("I", name)
    if number not in GGML_TYPES:
        raise cursor.error("has an unknown type", name, number)
    type_name, block, block_bytes = GGML_TYPES[number]
    row = shape[0] if shape else 1
    if row % block:
        raise cursor.error(
            f"has rows that are not whole {type_name} blocks", name, row, f"a multiple of {block}"
        )
    return shape[::-1], type_name, prod(shape) // block * block_bytes


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return (size + alignment - 1) // alignment * alignment
