"""The header of a safetensors file, and its tensors as arrays.

Headers are checked field by field before any data is read, because errors must name the file and the tensor
(format: https://github.com/huggingface/safetensors, "Format"). Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sb_edge.gguf.floats import to_float32
from sb_edge.util.errors import CheckpointError
from sb_edge.util.input_files import open_input
from sb_edge.util.json_files import parse_json_object
from sb_edge.util.text_files import refuse_lfs_pointer

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""numpy's types by safetensors' names. These models have no weights of other types."""

_OTHER_DTYPES = frozenset(
    [
        "BOOL",
        "U8",
        "I8",
        "F4",
        "F6_E2M3",
        "F6_E3M2",
        "F8_E5M2",
        "F8_E4M3",
        "F8_E8M0",
        "I16",
        "U16",
        "I32",
        "U32",
        "I64",
        "U64",
        "F64",
        "C64",
    ]
)
HEAD = "lm_head.weight"
"""The output matrix."""
TIED_HINT = "if the output is tied to the embeddings, set tie_word_embeddings to true in config.json"
_COMPARED_BYTES = 1 << 24
_MAX_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorInfo:
    """Shape, type and position of a tensor.

    Attributes:
        shape: PyTorch's order, [out, in] for a linear layer.
        dtype: type of numpy, or bfloat16 of ml_dtypes.
        nbytes: size of the data, bytes.
        file: the shard.
        offset: start of the data, bytes from the start of the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    file: Path
    offset: int


def read_tensor(info: TensorInfo) -> np.ndarray:
    """Read a tensor as a read-only memory map in its own type and shape."""
    if not info.nbytes:
        return np.zeros(info.shape, info.dtype)
    raw = np.memmap(info.file, mode="r", dtype=np.uint8, offset=info.offset, shape=(info.nbytes,))
    return raw.view(info.dtype).reshape(info.shape)


def require_tied(head: TensorInfo, embeddings: TensorInfo) -> None:
    """Check that a stored output matrix is the embeddings, to which config.json ties it.

    Raises:
        CheckpointError: it has other values.
    """
    rows = max(_COMPARED_BYTES // max(head.nbytes // max(head.shape[0], 1), 1), 1) if head.shape else 1
    ours, theirs = read_tensor(head), read_tensor(embeddings)
    if head.shape != embeddings.shape or any(
        not np.array_equal(to_float32(ours[start : start + rows]), to_float32(theirs[start : start + rows]))
        for start in range(0, head.shape[0], rows)
    ):
        raise CheckpointError(
            "differs from the embeddings, to which tie_word_embeddings ties it",
            path=head.file,
            item=HEAD,
            hint="set tie_word_embeddings to false in config.json to keep it, or remove this tensor",
        )


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Check the header of one safetensors file against the file, and list its tensors.

    Raises:
        CheckpointError: not safetensors or truncated, data overlaps or is out of range, or a type is not F32,
            F16 or BF16.
    """
    with open_input(path, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        refuse_lfs_pointer(file.read(64), path, CheckpointError)
        file.seek(0)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(
                "is truncated",
                path=path,
                found=f"{size} bytes",
                expected="a header",
                hint="fetch this file again",
            )
        length = int.from_bytes(prefix, "little")
        if length > _MAX_HEADER or length < 2:
            raise CheckpointError(
                "is not a safetensors file",
                path=path,
                item="header length",
                found=length,
                expected=f"2 to {_MAX_HEADER}",
            )
        if length > size - 8:
            raise CheckpointError(
                "is truncated",
                path=path,
                item="header",
                found=f"{size - 8} bytes after the length",
                expected=f"at least {length}",
                hint="fetch this file again",
            )
        header = parse_safetensors_json(file.read(length), path, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError("is not a JSON object", path=path, item="__metadata__")
    tensors = {name: _tensor_info(name, entry, path, 8 + length) for name, entry in header.items()}
    _check_layout(tensors, path, 8 + length, size)
    return tensors


def parse_safetensors_json(data: bytes, path: Path, item: str | None = None) -> dict[str, Any]:
    """Parse the JSON of a header or an index.

    Args:
        data: UTF-8 text.
        path: the file, for messages.
        item: name of this part of the file; None for a whole file.

    Raises:
        CheckpointError: not valid JSON, not an object, or a name that is listed twice.
    """
    return parse_json_object(data, path, CheckpointError, item=item, pairs=partial(_unique, path=path))


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError("is listed twice", path=path, item=twice)
    return document


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor_info(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    def error(message: str, found: object, expected: object, hint: str | None = None) -> CheckpointError:
        return CheckpointError(message, path=path, item=name, found=found, expected=expected, hint=hint)

    if not isinstance(entry, dict):
        raise error("is not a JSON object", type(entry).__name__, "dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        supported = "F32, F16 or BF16"
        if isinstance(dtype, str) and dtype in _OTHER_DTYPES:
            raise error("has a type that is not supported", dtype, supported, "cast the checkpoint first")
        raise error("has an unknown type", repr(dtype), supported)
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise error("has no valid shape", shape, "a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise error("has no valid data_offsets", offsets, "[begin, end]")
    nbytes = prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise error("the size of its data does not fit its shape", f"{offsets[1] - offsets[0]} bytes", nbytes)
    return TensorInfo(tuple(shape), DTYPES[dtype], nbytes, path, data_start + offsets[0])


def _check_layout(tensors: Mapping[str, TensorInfo], path: Path, data_start: int, size: int) -> None:
    """Refuse gaps and overlaps of data, as the format requires."""
    end = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            problem = "overlaps another tensor" if info.offset < end else "follows a gap"
            raise CheckpointError(
                problem, path=path, item=name, found=f"byte {info.offset}", expected=f"byte {end}"
            )
        end = info.offset + info.nbytes
        if end > size:
            raise CheckpointError(
                "is truncated",
                path=path,
                item=name,
                found=f"{size} bytes",
                expected=f"{end} for this tensor",
                hint="fetch this file again",
            )
    if end != size:
        raise CheckpointError(
            "has data after its last tensor",
            path=path,
            found=f"{size} bytes",
            expected=end,
            hint="fetch this file again",
        )
