"""A GGUF with other keys: everything else is copied byte for byte, so no type and no value can change."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from gguf import GGUFValueType as Kind

from sb_edge.errors import GgufError
from sb_edge.files import atomic_output, require_free_space
from sb_edge.gguf_reader import FileLayout, read_header, read_layout
from sb_edge.quant.spike_plan import SPIKE_KEYS, SpikePlan

Scalar = bool | float | str
Value = Scalar | Sequence[Scalar]

_KINDS = {bool: Kind.BOOL, float: Kind.FLOAT32, str: Kind.STRING}
_PIECE = 1 << 20


def with_metadata(
    source: Path, target: Path, *, values: Mapping[str, Value], removed: Collection[str] = ()
) -> None:
    """Copy a GGUF with some keys set and others removed; complete or not at all.

    Keys that stay keep their place, a new value takes its key's place, new keys come last. Memory use does
    not depend on the size.

    Args:
        source: a GGUF of one file.
        target: may be `source`.
        values: a bool becomes GGUF's bool, a float f32, a str a string; a sequence of one of them an array.
        removed: keys to leave out; they need not be there.

    Raises:
        GgufError: not a GGUF, corrupt, in several parts, or a change that would move the tensors.
        OutputError: the target cannot be written.
    """
    header, layout = read_header(source), read_layout(source)
    if len(header.files) > 1:
        raise GgufError(
            "keys of a model in several parts are not changed",
            path=source,
            found=f"{len(header.files)} parts",
            expected="one file",
            hint="join them by llama-gguf-split --merge",
        )
    changed = {*values, *removed}
    if "general.alignment" in changed:
        raise GgufError("would move the tensors", path=source, item="general.alignment")
    with atomic_output(target) as partial, source.open("rb") as old, partial.open("wb") as new:
        require_free_space(partial.parent, source.stat().st_size, str(target))
        _write_header(old, new, layout, values, removed)
        old.seek(layout.data)
        shutil.copyfileobj(old, new, _PIECE)


def with_spike_plan(source: Path, target: Path, plan: SpikePlan | None) -> None:
    """Copy a GGUF with this spike plan instead of what it has; None: without one.

    Raises:
        GgufError: as `with_metadata`.
        OutputError: the target cannot be written.
    """
    present = [key for key in read_layout(source).keys if key.startswith(SPIKE_KEYS)]
    values = plan.keys() if plan else {}
    with_metadata(source, target, values=values, removed=[key for key in present if key not in values])


def _write_header(
    old: BinaryIO,
    new: BinaryIO,
    layout: FileLayout,
    values: Mapping[str, Value],
    removed: Collection[str],
) -> None:
    keys = [
        key
        for key in [*layout.keys, *(key for key in values if key not in layout.keys)]
        if key not in removed
    ]
    new.write(struct.pack("<4sIQQ", b"GGUF", layout.version, layout.n_tensors, len(keys)))
    for key in keys:
        if key in values:
            new.write(_text(key) + _typed(values[key]))
        else:
            new.write(_section(old, layout.keys[key]))
    new.write(_section(old, layout.table))
    if layout.n_tensors:
        new.write(bytes(-new.tell() % layout.alignment))


def _section(file: BinaryIO, span: tuple[int, int]) -> bytes:
    file.seek(span[0])
    return file.read(span[1] - span[0])


def _typed(value: Value) -> bytes:
    """A value with its type before it, as in GGUF."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return struct.pack("<I", _kind(value)) + _bytes(value)
    kind = _kind(value[0]) if value else Kind.STRING
    if any(_kind(item) != kind for item in value):
        raise TypeError("an array of a GGUF holds values of one type")
    return struct.pack("<IIQ", Kind.ARRAY, kind, len(value)) + b"".join(map(_bytes, value))


def _kind(value: Scalar) -> Kind:
    kind = _KINDS.get(type(value))
    if kind is None:
        raise TypeError(f"no value for a key: {value!r}")
    return kind


def _bytes(value: Scalar) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack("<?" if isinstance(value, bool) else "<f", value)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
