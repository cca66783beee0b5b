"""Writing a GGUF one piece at a time.

`gguf.GGUFWriter` lays out header, keys and tensor table; the data is appended here in pieces, because
GGUFWriter takes whole tensors and the largest is a gigabyte.
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

from sb_edge.util.errors import OutputError
from sb_edge.util.files import atomic_files, write_all

SetMetadata = Callable[[gguf.GGUFWriter], None]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    Attributes:
        name: in the GGUF.
        source: what the caller finds its data by.
        shape: numpy's order, [out, in].
        qtype: its type in the file.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        """Size in the file, padding excepted."""
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
    """The files that `write_gguf` would write: `path`, or its parts `-00001-of-0000N`."""
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
    """Write a GGUF, in parts if it is larger than `split_max_size` bytes; complete or not at all.

    Args:
        path: the file; of several parts, what `-00001-of-0000N` is put into.
        arch: `general.architecture`.
        tensors: in the order of the file.
        set_metadata: adds the keys.
        data: yields a tensor's bytes in consecutive one-dimensional uint8 pieces, as they stand in the file.
        split_max_size: bytes of tensor data a part, 0 for one file. A larger tensor gets a part of its own.

    Returns:
        The files written.

    Raises:
        OutputError: no such folder, the device is full, or a tensor's data has another size than planned.
    """
    writer = _plan(arch, tensors, split_max_size)
    set_metadata(writer)
    parts = [list(part) for part in writer.tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    with atomic_files(path) as folder:
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
    """Write tensors after the header, or after other tensors, of a GGUF whose table has them already.

    Raises:
        OutputError: a tensor's data has another size than planned.
    """
    with file.open("ab", buffering=0) as stream, _EarlySync(stream.fileno()) as sync:
        fd = stream.fileno()
        _pad(fd, file.stat().st_size, alignment)
        for tensor in tensors:
            written = 0
            for piece in data(tensor):
                write_all(fd, piece)
                written += piece.nbytes
                sync.wrote(piece.nbytes)
            if written != tensor.nbytes:
                raise OutputError(
                    "has another size than planned",
                    path=file,
                    item=tensor.name,
                    found=f"{written} bytes",
                    expected=tensor.nbytes,
                )
            _pad(fd, written, alignment)


class _EarlySync:
    """Brings data to the device in the background while more is computed, so that the last sync is short."""

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
        """Count; begin a sync when there is enough to do and the last one is over."""
        self._waiting += nbytes
        if self._waiting < self._STEP or (self._running and not self._running.done()):
            return
        if self._running:
            self._running.result()  # raises what the device refused
        self._waiting = 0
        self._running = self._pool.submit(os.fdatasync, self._fd)


def _pad(fd: int, size: int, alignment: int) -> None:
    write_all(fd, bytes(-size % alignment))


def file_size(files: Iterable[Path]) -> int:
    """The sum of the files' sizes, bytes."""
    return sum(file.stat().st_size for file in files)
