"""Values of a GGUF's tensors."""

from __future__ import annotations

from typing import Literal

import gguf
import numpy as np

from sb_edge.gguf.reader import TensorEntry
from sb_edge.util.errors import GgufError


def tensor_bytes(tensor: TensorEntry, *, writable: bool = False) -> np.ndarray:
    """A memory map of a tensor's bytes, uint8 [rows, bytes per row]; `writable`: changes go to the file."""
    rows = int(np.prod(tensor.shape[:-1]))
    mode: Literal["r+", "r"] = "r+" if writable else "r"
    raw = np.memmap(tensor.file, dtype=np.uint8, mode=mode, offset=tensor.offset, shape=(tensor.nbytes,))
    return raw.reshape(rows, -1)


def tensor_values(tensor: TensorEntry) -> np.ndarray:
    """A tensor's values as float32 in its shape; quantized values are dequantized.

    Raises:
        GgufError: the type is not supported by gguf-py.
    """
    kind = gguf.GGMLQuantizationType[tensor.type]
    try:
        values: np.ndarray = gguf.quants.dequantize(tensor_bytes(tensor), kind)
    except NotImplementedError:
        raise GgufError(
            "a type that cannot be read as weights", path=tensor.file, item=tensor.name, found=tensor.type
        ) from None
    return values.reshape(tensor.shape).astype(np.float32, copy=False)
