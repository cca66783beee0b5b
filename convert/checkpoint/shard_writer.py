"""Write a checkpoint folder, in shards if it is large."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.convert.checkpoint.folder import INDEX_FILE, SINGLE_FILE
from sb_edge.convert.checkpoint.safetensors_file import DTYPES, TensorInfo
from sb_edge.util.errors import CheckpointError
from sb_edge.util.files import atomic_directory, require_free_space, write_all


class CheckpointWriter:
    """Writes a checkpoint folder in the public layout, tensor by tensor, complete or not at all.

    A context manager. Tensors may be written in any order; all must be written before the block ends.

    Args:
        folder: folder to write; must be empty or not exist.
        config: content of config.json.
        shapes: (shape, type) by tensor name, in file order; types as in `DTYPES`.
        max_shard_bytes: maximum size of a shard; a larger tensor gets its own shard.
    """

    def __init__(
        self,
        folder: Path,
        config: SpikingBrainConfig,
        shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        self.folder = Path(folder)
        self._config = config
        self._shapes = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
        self._shards = _plan_shards(self._shapes, max_shard_bytes)
        self._missing = set(self._shapes)
        self._stack = ExitStack()
        self._places: dict[str, TensorInfo] = {}
        self._files: dict[Path, int] = {}
        self.path = self.folder
        """Folder of the files while the block runs; other files may be added to it."""

    @property
    def nbytes(self) -> int:
        """Size of all tensors, bytes."""
        return sum(_nbytes(*spec) for spec in self._shapes.values())

    def __enter__(self) -> CheckpointWriter:
        if self.folder.absolute().parent.is_dir():
            require_free_space(self.folder.absolute().parent, self.nbytes, "the checkpoint")
        with ExitStack() as stack:
            self.path = stack.enter_context(atomic_directory(self.folder))
            self._begin(stack)
            self._stack = stack.pop_all()
        return self

    def _begin(self, stack: ExitStack) -> None:
        (self.path / "config.json").write_text(
            json.dumps(self._config.to_json(), indent=2) + "\n", encoding="utf-8"
        )
        for number, names in enumerate(self._shards, 1):
            self._begin_shard(stack, self.path / shard_name(number, len(self._shards)), names)
        if len(self._shards) > 1:
            weight_map = {name: self._places[name].file.name for name in self._shapes}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
            (self.path / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _begin_shard(self, stack: ExitStack, path: Path, names: list[str]) -> None:
        type_names = {dtype: name for name, dtype in DTYPES.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            shape, dtype = self._shapes[name]
            end = offset + _nbytes(shape, dtype)
            header[name] = {"dtype": type_names[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # aligns the data
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        stack.callback(os.close, fd)
        self._files[path] = fd
        write_all(fd, len(text).to_bytes(8, "little") + text)
        for name in names:
            shape, dtype = self._shapes[name]
            place = 8 + len(text) + header[name]["data_offsets"][0]
            self._places[name] = TensorInfo(shape, dtype, _nbytes(shape, dtype), path, place)

    def write(self, name: str, array: np.ndarray) -> None:
        """Write a whole tensor.

        Raises:
            CheckpointError: the tensor is unknown or already written, or its shape or type differs from
                `shapes`.
        """
        info = self._places.get(name)
        if info is not None and tuple(array.shape) != info.shape:
            raise CheckpointError(
                "has the wrong shape", item=name, found=list(array.shape), expected=list(info.shape)
            )
        self.write_chunks(name, [array])

    def write_chunks(self, name: str, chunks: Iterable[np.ndarray]) -> None:
        """Write a tensor from consecutive chunks of its values.

        Raises:
            CheckpointError: the tensor is unknown or already written, or its type or size differs from
                `shapes`.
        """
        if name not in self._missing:
            known = "was already written" if name in self._places else "is not in the list of tensors"
            raise CheckpointError(known, path=self.folder, item=name)
        info = self._places[name]
        fd = self._files[info.file]
        os.lseek(fd, info.offset, os.SEEK_SET)
        written = 0
        for chunk in chunks:
            if chunk.dtype != info.dtype:
                raise CheckpointError("has the wrong type", item=name, found=chunk.dtype, expected=info.dtype)
            written += chunk.nbytes
            if written <= info.nbytes:
                write_all(fd, np.ascontiguousarray(chunk).reshape(-1).view(np.uint8))
        if written != info.nbytes:
            raise CheckpointError(
                "has the wrong size", item=name, found=f"{written} bytes", expected=info.nbytes
            )
        self._missing.discard(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._missing:
            error = CheckpointError("was not written", path=self.folder, item=min(self._missing))
            self._stack.__exit__(type(error), error, None)
            raise error
        self._stack.__exit__(kind, error, trace)


def shard_name(number: int, count: int) -> str:
    """File name of shard `number` (from 1) of `count`, as in public checkpoints."""
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return prod(shape) * dtype.itemsize


def _plan_shards(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in shapes.items():
        nbytes = _nbytes(shape, dtype)
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards
