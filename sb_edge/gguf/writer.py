"""Write a GGUF chunk by chunk.

`gguf.GGUFWriter` writes header, keys and tensor table. The data is appended here in chunks, because
GGUFWriter takes whole tensors and the largest has a gigabyte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from sb_edge.gguf.reader import require_written
from sb_edge.util.errors import OutputError
from sb_edge.util.files import atomic_files, write_all

SetMetadata = Callable[[gguf.GGUFWriter], None]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write.

    Attributes:
        name: name in the GGUF.
        source: the caller's name for its data.
        shape: numpy's order, [out, in].
        qtype: type in the file.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        """Size in the file without padding, bytes."""
        block, size = gguf.GGML_QUANT_SIZES[self.qtype]
        return prod(self.shape) // block * size


def _plan(arch: str, tensors: Sequence[PlannedTensor], split_max_size: int) -> gguf.GGUFWriter:
    splits = sum(tensor.nbytes for tensor in tensors) > split_max_size > 0
    writer = gguf.GGUFWriter(None, arch, split_max_size=split_max_size if splits else 0)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.qtype
        )
    return writer


def planned_files(path: Path, tensors: Sequence[PlannedTensor], split_max_size: int = 0) -> list[Path]:
    """Names of the files that `write_gguf` writes: `path`, or its parts `-00001-of-0000N`."""
    return _plan("", tensors, split_max_size).format_shard_names(path)


def write_gguf(
    path: Path,
    arch: str,
    tensors: Sequence[PlannedTensor],
    set_metadata: SetMetadata,
    data: Callable[[PlannedTensor], Iterable[np.ndarray]],
    *,
    split_max_size: int = 0,
) -> list[Path]:
    """Write a GGUF, in parts if it is larger than `split_max_size` bytes, complete or not at all.

    Args:
        path: the file; names of parts are `path` with `-00001-of-0000N`.
        arch: `general.architecture`.
        tensors: tensors in file order.
        set_metadata: adds the keys.
        data: yields the encoded bytes of a tensor as consecutive one-dimensional uint8 chunks.
        split_max_size: bytes of tensor data per part; 0 for one file. A larger tensor gets its own part.

    Returns:
        The files written.

    Raises:
        OutputError: the files cannot be written, or a tensor's data does not have the planned size.
    """
    writer = _plan(arch, tensors, split_max_size)
    set_metadata(writer)
    parts = [list(part) for part in writer.tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    expected = dict(zip((file.name for file in writer.format_shard_names(path)), parts, strict=True))

    def check(file: Path) -> None:
        require_written(file, (), expected[file.name], path.with_name(file.name))

    with atomic_files(path, check=check) as folder:
        try:
            writer.write_header_to_file(folder / path.name)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        files = writer.format_shard_names(folder / path.name)
        for file, names in zip(files, parts, strict=True):
            append_tensors(file, [by_name[name] for name in names], data, writer.data_alignment)
    return [path.with_name(file.name) for file in files]


def append_tensors(
    file: Path,
    tensors: Sequence[PlannedTensor],
    data: Callable[[PlannedTensor], Iterable[np.ndarray]],
    alignment: int,
) -> None:
    """Append tensor data to a GGUF whose tensor table already lists these tensors.

    Args:
        file: the GGUF, which ends after its header or after earlier tensors.
        tensors, data: as in `write_gguf`.
        alignment: alignment of the data, bytes.

    Raises:
        OutputError: a tensor's data does not have the planned size.
    """
    with file.open("ab", buffering=0) as stream, _EarlySync(stream.fileno()) as sync:
        fd = stream.fileno()
        _pad(fd, file.stat().st_size, alignment)
        for tensor in tensors:
            written = 0
            for chunk in data(tensor):
                write_all(fd, chunk)
                written += chunk.nbytes
                sync.wrote(chunk.nbytes)
            if written != tensor.nbytes:
                raise OutputError(
                    "does not have the planned size",
                    path=file,
                    item=tensor.name,
                    found=f"{written} bytes",
                    expected=tensor.nbytes,
                )
            _pad(fd, written, alignment)


class _EarlySync:
    """Syncs data to the device in the background during computation, so that the final sync is short."""

    _STEP = 64 << 20

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._waiting = 0

    def __enter__(self) -> _EarlySync:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def wrote(self, nbytes: int) -> None:
        """Count written bytes; start a sync if there are enough and the previous sync has ended."""
        self._waiting += nbytes
        if self._waiting < self._STEP or (self._running and not self._running.done()):
            return
        if self._running:
            self._running.result()  # raises errors of the device
        self._waiting = 0
        self._running = self._pool.submit(os.fdatasync, self._fd)


def _pad(fd: int, size: int, alignment: int) -> None:
    write_all(fd, bytes(-size % alignment))


def file_size(files: Iterable[Path]) -> int:
    """Total size of the files, bytes."""
    return sum(file.stat().st_size for file in files)
