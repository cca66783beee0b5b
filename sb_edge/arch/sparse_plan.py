"""The sparse layout of a GGUF: its projections, read and checked.

The file holds the weight of such a projection twice: by rows, as in every GGUF, and by columns, one per input
channel, so that a decoded token does not load columns of channels below their dead zone. See docs/sparse.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch import ARCH
from sb_edge.gguf.reader import GgufHeader, TensorEntry
from sb_edge.util.errors import GgufError

SPARSE_PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Projections that can have a sparse layout, by the stem of their tensor's name."""

SPARSE_KEYS = f"{ARCH}.sparse."
MAX_DENSITY_KEY = SPARSE_KEYS + "max_density"
SPARSE_OVERRIDE_KEY = SPARSE_KEYS + "override"
"""Never in a file: passed to the engine at load time; 0 disables the layout."""

COLUMN_TYPES = ("Q4_0", "Q8_0")
COLUMN_BLOCK = 32
"""Block size of these types; divides the number of outputs."""

_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(columns|zones)\.weight")


@dataclass(frozen=True)
class SparseProjection:
    """A projection with a sparse layout.

    Attributes:
        layer: index of the layer, from 0.
        name: name in `SPARSE_PROJECTIONS`.
        columns: columns of the weight, [n, m]: n input channels, m outputs.
        zones: float32 [n]: channel c is silent where |x_c| < zones[c].
    """

    layer: int
    name: str
    columns: TensorEntry
    zones: TensorEntry

    def read_zones(self) -> NDArray[np.float32]:
        """Read the dead zones, [n].

        Raises:
            GgufError: a dead zone is negative, infinite or NaN.
        """
        path, shape = self.zones.file, self.zones.shape
        values = np.fromfile(path, np.dtype("<f4"), count=shape[0], offset=self.zones.offset)
        bad = np.flatnonzero(~((values >= 0) & np.isfinite(values)))
        if bad.size:
            raise GgufError(
                "is not a valid dead zone",
                path=path,
                item=f"{self.zones.name}[{bad[0]}]",
                found=values[bad[0]],
                expected="a finite number >= 0",
                hint="make the file again with `sb-edge sparsify`",
            )
        return values


@dataclass(frozen=True)
class SparsePlan:
    """The sparse layout of a model.

    Attributes:
        max_density: maximum share of active channels; a token above it uses the dense product.
        projections: at least one, by layer, then in the order of `SPARSE_PROJECTIONS`.
    """

    max_density: float
    projections: tuple[SparseProjection, ...]


def row_name(layer: int, projection: str) -> str:
    """Name of the weight of a projection."""
    return f"blk.{layer}.{projection}.weight"


def columns_name(layer: int, projection: str) -> str:
    """Name of the weight by columns of a projection."""
    return f"blk.{layer}.{projection}.columns.weight"


def zones_name(layer: int, projection: str) -> str:
    """Name of the dead zones of a projection."""
    return f"blk.{layer}.{projection}.zones.weight"


def is_sparse_tensor(name: str) -> bool:
    """True if a tensor belongs to a sparse layout and the dense model does not need it."""
    return _NAME.fullmatch(name) is not None


def dense_tensors(header: GgufHeader) -> list[TensorEntry]:
    """Tensors of a model without its sparse layout."""
    if header.arch != ARCH:
        return header.tensors
    return [tensor for tensor in header.tensors if not is_sparse_tensor(tensor.name)]


def sparse_values(header: GgufHeader) -> int:
    """Number of values in the tensors of the sparse layout, which are not counted as parameters."""
    layout = [tensor for tensor in header.tensors if header.arch == ARCH and is_sparse_tensor(tensor.name)]
    return sum(prod(tensor.shape) for tensor in layout)


def check_sparse(header: GgufHeader) -> SparsePlan | None:
    """The sparse layout of a GGUF; None if it has none. `SparseProjection.read_zones` reads the dead zones.

    Raises:
        GgufError: the layout is incomplete, a shape or type is wrong, or a key is unknown, missing or
            invalid.
    """
    path = header.files[0]
    keys = [key for key in header.metadata if key.startswith(SPARSE_KEYS)]
    unknown = [key for key in keys if key != MAX_DENSITY_KEY]
    if unknown:
        raise GgufError("is not a known key", path=path, item=unknown[0], expected=MAX_DENSITY_KEY)
    if header.arch != ARCH:
        if keys:
            raise GgufError(
                "belongs to another architecture", path=path, item=keys[0], found=header.arch, expected=ARCH
            )
        return None
    tensors = {tensor.name: tensor for tensor in header.tensors}
    found = {(int(match[1]), match[2]) for match in map(_NAME.fullmatch, tensors) if match}
    if not found and not keys:
        return None
    projections = [_projection(tensors, header, layer, name) for layer, name in _ordered(header, found)]
    if not projections:
        raise GgufError("the file has no sparse projection", path=path, item=MAX_DENSITY_KEY)
    return SparsePlan(_max_density(header), tuple(projections))


def _ordered(header: GgufHeader, found: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    for layer, name in found:
        if name not in SPARSE_PROJECTIONS:
            raise GgufError(
                "this projection cannot have a sparse layout",
                path=header.files[0],
                item=f"blk.{layer}.{name}",
                expected=f"one of {' '.join(SPARSE_PROJECTIONS)}",
            )
    return sorted(found, key=lambda key: (key[0], SPARSE_PROJECTIONS.index(key[1])))


def _projection(
    tensors: dict[str, TensorEntry], header: GgufHeader, layer: int, name: str
) -> SparseProjection:
    path = header.files[0]
    needed = (row_name(layer, name), columns_name(layer, name), zones_name(layer, name))
    missing = [each for each in needed if each not in tensors]
    if missing:
        raise GgufError(
            "is missing",
            path=path,
            item=missing[0],
            found=next(each for each in needed[1:] if each in tensors),
            expected="rows, columns and zones of a sparse projection",
        )
    rows, columns, zones = (tensors[each] for each in needed)
    if columns.shape != rows.shape[::-1] or zones.shape != rows.shape[1:]:
        wrong = columns if columns.shape != rows.shape[::-1] else zones
        expected = rows.shape[::-1] if wrong is columns else rows.shape[1:]
        raise GgufError(
            "does not have the shape of its weight",
            path=path,
            item=wrong.name,
            found=list(wrong.shape),
            expected=list(expected),
        )
    for tensor, types in ((columns, COLUMN_TYPES), (zones, ("F32",))):
        if tensor.type not in types:
            raise GgufError(
                "has the wrong type",
                path=path,
                item=tensor.name,
                found=tensor.type,
                expected=" or ".join(types),
            )
    return SparseProjection(layer, name, columns, zones)


def _max_density(header: GgufHeader) -> float:
    value = header.metadata.get(MAX_DENSITY_KEY)
    if not isinstance(value, float) or not 0 < value <= 1:
        raise GgufError(
            "is missing" if value is None else "is not a share",
            path=header.files[0],
            item=MAX_DENSITY_KEY,
            found=value,
            expected="above 0, at most 1",
        )
    return value
