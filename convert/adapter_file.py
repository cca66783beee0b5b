"""What distillation changed of a base, in one compact GGUF: GLA layers whole, others as low-rank additions.

Matrices are Q8_0 where their rows allow it, else F16; vectors are F32. The keys are those of a GGUF adapter
with a type of its own.
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

from sb_edge.arch.config import ARCH
from sb_edge.arch.tensors import TensorSpec, attention_prefixes
from sb_edge.gguf.reader import TensorEntry, read_header
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.gguf.values import tensor_values
from sb_edge.gguf.writer import PlannedTensor, write_gguf
from sb_edge.util.errors import GgufError

ADAPTER_TYPE = "distillation"

IN, OUT = ".adapter_in", ".adapter_out"
"""What follows a projection's name in those of A [rank, in] and B [out, rank]; B A is added to its weight."""

_TYPE, _BASE, _LAYERS, _WINDOW = (f"adapter.{key}" for key in ("type", "base_sha256", "gla_layers", "window"))


@dataclass(frozen=True)
class Delta:
    """A delta, open.

    Attributes:
        path: its file.
        base: `fingerprint` of the base.
        gla_layers: the student's.
        window: of its other layers.
        tensors: by name.
    """

    path: Path
    base: str
    gla_layers: tuple[int, ...]
    window: int
    tensors: Mapping[str, TensorEntry]

    def require(self, base: str, table: Mapping[str, TensorSpec]) -> None:
        """Refuse another base's delta, or one with tensors that its student does not have.

        Raises:
            GgufError: which.
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

    def of_layers(self, gla_layers: Collection[int]) -> Delta:
        """Only some of the GLA layers; the base's attention stays in the others.

        Raises:
            GgufError: a layer that is not among them.
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
        """A tensor as it is held, float32.

        Raises:
            GgufError: another shape.
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
        """What an adapter adds to a weight [out, in], float32; None if there is none.

        Raises:
            GgufError: another shape.
        """
        projection = name.removesuffix(".weight")
        if projection + IN not in self.tensors:
            return None
        rank = self.tensors[projection + IN].shape[0]
        first = self.whole(projection + IN, (rank, shape[1]))
        last = self.whole(projection + OUT, (shape[0], rank))
        added: NDArray[np.float32] = last @ first
        return added


def read_delta(path: Path) -> Delta:
    """Open a delta.

    Raises:
        GgufError: not a GGUF, damaged, or something else than a delta.
    """
    header = read_header(path)
    found = header.metadata.get(_TYPE)
    if found != ADAPTER_TYPE:
        raise GgufError(
            "is not a delta of a distillation",
            path=path,
            item=_TYPE,
            found=repr(found),
            expected=repr(ADAPTER_TYPE),
            hint="give the trained.gguf of a run of sb-edge distill",
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
    return Delta(path, base, tuple(int(layer) for layer in layers), window, names)


def write_delta(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    base: str,
    gla_layers: Sequence[int],
    window: int,
) -> None:
    """Write a delta; complete or not at all.

    Args:
        path: the file.
        tensors: of GLA layers under the checkpoint's names, adapters under their projection's with `IN` and
            `OUT`; float32.
        base, gla_layers, window: as `Delta`.

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
