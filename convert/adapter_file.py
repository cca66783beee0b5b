"""Adapter files: the parameters that distillation trained, in one compact GGUF.

The attention of GLA layers is stored whole; changes of other weights are stored as low-rank pairs.

Matrices are Q8_0 if their rows have a multiple of 32 values, else F16; vectors are F32. The keys are those of
a GGUF adapter, with an `adapter.type` of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from sb_edge.arch import ARCH
from sb_edge.arch.tensors import TensorSpec, attention_prefixes
from sb_edge.gguf.reader import TensorEntry, read_header
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.gguf.values import tensor_values
from sb_edge.gguf.writer import PlannedTensor, write_gguf
from sb_edge.util.errors import GgufError

ADAPTER_TYPE = "distillation"

IN, OUT = ".adapter_in", ".adapter_out"
"""Suffixes of a projection's name for A [rank, in] and B [out, rank]; B A is added to its weight."""

_TYPE, _BASE, _LAYERS, _WINDOW = (f"adapter.{key}" for key in ("type", "base_sha256", "gla_layers", "window"))


@dataclass(frozen=True)
class AdapterFile:
    """An open adapter file.

    Attributes:
        path: the file.
        base: `fingerprint` of the base.
        gla_layers: GLA layers of the student, ascending.
        window: attention window of the other layers, tokens.
        tensors: entries of the file by name.
    """

    path: Path
    base: str
    gla_layers: tuple[int, ...]
    window: int
    tensors: Mapping[str, TensorEntry]

    def require(self, base: str, table: Mapping[str, TensorSpec]) -> None:
        """Refuse an adapter file of another base, or with tensors that its student does not have.

        Args:
            base: `fingerprint` of the base.
            table: tensors of the student.

        Raises:
            GgufError: the bases differ, or a tensor does not fit; names the first one.
        """
        if self.base != base:
            raise GgufError("belongs to another base", path=self.path, found=self.base, expected=base)
        for name in self.tensors:
            projection = next((name.removesuffix(end) for end in (IN, OUT) if name.endswith(end)), None)
            if projection is None:
                fits = name in table
            else:
                weight = table.get(f"{projection}.weight")
                pair = {projection + IN, projection + OUT}
                fits = weight is not None and len(weight.shape) == 2 and pair <= self.tensors.keys()
            if not fits:
                raise GgufError("a tensor that the student does not have", path=self.path, item=name)

    def of_layers(self, gla_layers: Collection[int]) -> AdapterFile:
        """Keep only some GLA layers; the others have the base's attention.

        Args:
            gla_layers: layers to keep.

        Raises:
            GgufError: a layer is not in the file.
        """
        missing = sorted(set(gla_layers) - set(self.gla_layers))
        if missing:
            raise GgufError(
                "this layer was not trained",
                path=self.path,
                item="gla_layers",
                found=missing[0],
                expected=f"some of {', '.join(map(str, self.gla_layers))}",
            )
        left = [layer for layer in self.gla_layers if layer not in gla_layers]
        prefixes = attention_prefixes(left)
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(prefixes)}
        return replace(self, gla_layers=tuple(sorted(gla_layers)), tensors=kept)

    def whole(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The values of a stored tensor, float32.

        Raises:
            GgufError: the tensor has another shape.
        """
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise GgufError(
                "a tensor has another shape",
                path=self.path,
                item=name,
                found=list(tensor.shape),
                expected=list(shape),
            )
        return tensor_values(tensor)

    def addition(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The product B A that is added to a weight [out, in], float32; None without a low-rank pair.

        Raises:
            GgufError: A or B has another shape.
        """
        projection = name.removesuffix(".weight")
        if projection + IN not in self.tensors:
            return None
        rank = self.tensors[projection + IN].shape[0]
        first = self.whole(projection + IN, (rank, shape[1]))
        last = self.whole(projection + OUT, (shape[0], rank))
        added: NDArray[np.float32] = last @ first
        return added


def read_adapter_file(path: Path) -> AdapterFile:
    """Open an adapter file.

    Raises:
        GgufError: not a GGUF, damaged, or not an adapter file of a distillation.
    """
    header = read_header(path)
    found = header.metadata.get(_TYPE)
    if found != ADAPTER_TYPE:
        raise GgufError(
            "is not an adapter file of a distillation",
            path=path,
            item=_TYPE,
            found=repr(found),
            expected=repr(ADAPTER_TYPE),
            hint="give the trained.gguf of an `sb-edge distill` run",
        )
    base, layers, window = (header.metadata.get(key) for key in (_BASE, _LAYERS, _WINDOW))
    if not isinstance(base, str):
        raise GgufError("is not a string", path=path, item=_BASE, found=repr(base))
    layers = np.asarray(layers)
    if layers.ndim != 1 or layers.dtype.kind not in "iu" or (np.diff(layers.astype(np.int64)) <= 0).any():
        raise GgufError("is not an ascending list of layers", path=path, item=_LAYERS)
    if not isinstance(window, int) or window < 1:
        raise GgufError("is not a number of tokens", path=path, item=_WINDOW, found=repr(window))
    names = {tensor.name: tensor for tensor in header.tensors}
    return AdapterFile(path, base, tuple(int(layer) for layer in layers), window, names)


def write_adapter_file(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    base: str,
    gla_layers: Sequence[int],
    window: int,
) -> None:
    """Write an adapter file, complete or not at all.

    Args:
        path: the file.
        tensors: float32 by name: the checkpoint's name for a whole tensor, the projection's name with `IN`
            and `OUT` for a low-rank pair.
        base, gla_layers, window: as in `AdapterFile`.

    Raises:
        OutputError: the file cannot be written.
    """

    def set_metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_type("adapter")
        writer.add_string(_TYPE, ADAPTER_TYPE)
        writer.add_string(_BASE, base)
        writer.add_array(_LAYERS, list(gla_layers))
        writer.add_uint32(_WINDOW, window)

    def data(tensor: PlannedTensor) -> Iterable[np.ndarray]:
        stored = quantize(np.ascontiguousarray(tensors[tensor.source], np.float32), tensor.qtype)
        yield stored.reshape(-1).view(np.uint8)

    planned = [PlannedTensor(name, name, x.shape, _type_of(x.shape)) for name, x in tensors.items()]
    write_gguf(path, ARCH, planned, set_metadata, data)


def _type_of(shape: tuple[int, ...]) -> GGMLQuantizationType:
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    whole = shape[-1] % BLOCK_SIZES["Q8_0"][0] == 0
    return GGMLQuantizationType.Q8_0 if whole else GGMLQuantizationType.F16
