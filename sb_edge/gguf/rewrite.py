"""Copy a GGUF with changed keys or additional tensors. The rest is copied byte for byte."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFValueType as Kind

from sb_edge.gguf.reader import (
    FileLayout,
    padded,
    read_header,
    read_layout,
    read_tensors,
    require_written,
)
from sb_edge.gguf.writer import PlannedTensor, append_tensors
from sb_edge.util.errors import GgufError
from sb_edge.util.files import Check, atomic_output, require_free_space
from sb_edge.util.input_files import open_input

Scalar = bool | float | str
Value = Scalar | Sequence[Scalar]

_KINDS = {bool: Kind.BOOL, float: Kind.FLOAT32, str: Kind.STRING}
_CHUNK = 1 << 20


def with_metadata(
    source: Path, target: Path, *, values: Mapping[str, Value], removed: Collection[str] = ()
) -> None:
    """Copy a GGUF with some keys set and others removed, complete or not at all.

    Keys keep their order, and new keys come last. Memory use does not depend on the file size.

    Args:
        source: a GGUF of one file.
        target: file to write; may be `source`.
        values: new values by key: bool, float (f32) or str, or a sequence of one of these types (array).
        removed: keys to leave out, if present.

    Raises:
        GgufError: not a GGUF, corrupt, in several parts, or a change would move the tensors.
        OutputError: the target cannot be written.
    """
    layout = _single(source)
    changed = {*values, *removed}
    if "general.alignment" in changed:
        raise GgufError("would move the tensors", path=source, item="general.alignment")
    with (
        atomic_output(target, check=_check(source, layout, values, removed, (), target)) as partial,
        open_input(source, GgufError) as old,
        partial.open("wb") as new,
    ):
        require_free_space(partial.parent, source.stat().st_size, str(target))
        _write_header(old, new, layout, values, removed)
        old.seek(layout.data)
        shutil.copyfileobj(old, new, _CHUNK)


def with_tensors(
    source: Path,
    target: Path,
    tensors: Sequence[PlannedTensor],
    data: Callable[[PlannedTensor], Iterable[np.ndarray]],
    *,
    values: Mapping[str, Value],
) -> None:
    """Copy a GGUF with more tensors after its own and some keys set, complete or not at all.

    Args:
        source: a GGUF of one file.
        target: file to write; may be `source`.
        tensors: tensors to add; `source` must not have these names.
        data: as in `write_gguf`.
        values: as in `with_metadata`.

    Raises:
        GgufError: not a GGUF, corrupt, or in several parts.
        OutputError: the target cannot be written, or a tensor's data does not have the planned size.
    """
    layout = _single(source)
    ends = [tensor.offset + tensor.nbytes for tensor in read_header(source).tensors]
    end = padded(max(ends, default=layout.data), layout.alignment)
    check = _check(source, layout, values, (), [tensor.name for tensor in tensors], target)
    with atomic_output(target, check=check) as partial:
        size = source.stat().st_size + sum(tensor.nbytes for tensor in tensors)
        require_free_space(partial.parent, size, str(target))
        with open_input(source, GgufError) as old, partial.open("wb") as new:
            entries, offset = b"", end - layout.data
            for tensor in tensors:
                entries += _entry(tensor, offset)
                offset += padded(tensor.nbytes, layout.alignment)
            _write_header(old, new, layout, values, (), entries, len(tensors))
            start = new.tell()
            old.seek(layout.data)
            shutil.copyfileobj(old, new, _CHUNK)
            new.truncate(min(new.tell(), start + end - layout.data))  # drop bytes after the last tensor
        append_tensors(partial, tensors, data, layout.alignment)


def _check(
    source: Path,
    layout: FileLayout,
    values: Mapping[str, Value],
    removed: Collection[str],
    added: Sequence[str],
    target: Path,
) -> Check:
    """Reads the copy back."""
    keys = [key for key in {*layout.keys, *values} if key not in removed]
    names = [*(tensor.name for tensor in read_tensors(source)[1]), *added]
    return lambda partial: require_written(partial, keys, names, target)


def _single(source: Path) -> FileLayout:
    header = read_header(source)
    if len(header.files) > 1:
        raise GgufError(
            "models in several parts are not supported",
            path=source,
            found=f"{len(header.files)} parts",
            expected="one file",
            hint="join them with llama-gguf-split --merge",
        )
    return read_layout(source)


def set_number(path: Path, key: str, value: float) -> None:
    """Overwrite the value of an f32 key in place, without a copy of the file.

    Raises:
        GgufError: not a GGUF, corrupt, or the key is absent or not f32.
    """
    span = read_layout(path).keys.get(key, (0, 0))
    with path.open("rb") as file:
        if not _section(file, span).startswith(_text(key) + struct.pack("<I", Kind.FLOAT32)):
            raise GgufError("is not an f32 key", path=path, item=key)
    with path.open("r+b") as file:
        file.seek(span[1] - 4)
        file.write(struct.pack("<f", value))


def _write_header(
    old: BinaryIO,
    new: BinaryIO,
    layout: FileLayout,
    values: Mapping[str, Value],
    removed: Collection[str],
    entries: bytes = b"",
    n_entries: int = 0,
) -> None:
    keys = [
        key
        for key in [*layout.keys, *(key for key in values if key not in layout.keys)]
        if key not in removed
    ]
    new.write(struct.pack("<4sIQQ", b"GGUF", layout.version, layout.n_tensors + n_entries, len(keys)))
    for key in keys:
        if key in values:
            new.write(_text(key) + _typed(values[key]))
        else:
            new.write(_section(old, layout.keys[key]))
    new.write(_section(old, layout.table) + entries)
    if layout.n_tensors + n_entries:
        new.write(bytes(-new.tell() % layout.alignment))


def _entry(tensor: PlannedTensor, offset: int) -> bytes:
    """An entry of the tensor table; `offset` counts from the begin of the data."""
    numbers = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
    return _text(tensor.name) + numbers + struct.pack("<IQ", tensor.qtype, offset)


def _section(file: BinaryIO, span: tuple[int, int]) -> bytes:
    file.seek(span[0])
    return file.read(span[1] - span[0])


def _typed(value: Value) -> bytes:
    """A value after its type, as in GGUF."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return struct.pack("<I", _kind(value)) + _bytes(value)
    kind = _kind(value[0]) if value else Kind.STRING
    if any(_kind(item) != kind for item in value):
        raise TypeError("all values of a GGUF array must have one type")
    return struct.pack("<IIQ", Kind.ARRAY, kind, len(value)) + b"".join(map(_bytes, value))


def _kind(value: Scalar) -> Kind:
    kind = _KINDS.get(type(value))
    if kind is None:
        raise TypeError(f"unsupported type of value: {value!r}")
    return kind


def _bytes(value: Scalar) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack("<?" if isinstance(value, bool) else "<f", value)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
