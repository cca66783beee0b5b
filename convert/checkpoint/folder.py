"""Checkpoint folders in the public Hugging Face layout: config.json and one or several safetensors files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sb_edge.arch.config import SpikingBrainConfig, load_config
from sb_edge.convert.checkpoint.safetensors_file import (
    TensorInfo,
    parse_safetensors_json,
    read_safetensors_header,
    read_tensor,
)
from sb_edge.util.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DEFAULT_CHUNK = 1 << 20


class Checkpoint:
    """A checkpoint folder, open for reading; use `Checkpoint.open`."""

    def __init__(self, folder: Path, config: SpikingBrainConfig, tensors: dict[str, TensorInfo]) -> None:
        self.folder = folder
        self.config = config
        self._tensors = tensors

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Check a folder's config.json and every safetensors header in it.

        Raises:
            CheckpointError: no such folder, pickle files only, a missing, truncated or corrupt shard.
            ConfigError: config.json is missing or has a wrong value.
        """
        folder = Path(folder)
        if not folder.exists():
            raise CheckpointError("not found", path=folder, hint="point at the checkpoint's folder")
        if not folder.is_dir():
            raise CheckpointError("is a file", path=folder, expected="the checkpoint's folder")
        return cls(folder, load_config(folder / "config.json"), read_tensor_table(folder))

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the order of the files."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape, type and place of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self._tensors:
            raise CheckpointError("there is no such tensor", path=self.folder, item=name)
        return self._tensors[name]

    def read(self, name: str) -> np.ndarray:
        """A tensor as a read-only, memory-mapped array in its own type and shape.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return read_tensor(self.info(name))

    def chunks(
        self, name: str, max_bytes: int = _DEFAULT_CHUNK, *, multiple: int = 1, buffers: int = 1
    ) -> Iterator[np.ndarray]:
        """A tensor's values in order, as one-dimensional pieces in its own type.

        Memory use does not depend on the tensor: a piece is overwritten `buffers` pieces later.

        Args:
            name: the tensor.
            max_bytes: size of a piece, at most (at least `multiple` values).
            multiple: every piece holds a multiple of this many values, the last one excepted.
            buffers: how many pieces stay valid at a time.

        Raises:
            CheckpointError: there is no such tensor, or the file became shorter since it was opened.
        """
        info = self.info(name)
        step = max(max_bytes // info.dtype.itemsize // multiple, 1) * multiple * info.dtype.itemsize
        ring = itertools.cycle([np.empty(min(step, info.nbytes), np.uint8) for _ in range(buffers)])
        with info.file.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), info.offset, info.nbytes, os.POSIX_FADV_SEQUENTIAL)
            file.seek(info.offset)
            for start in range(0, info.nbytes, step):
                piece = next(ring)[: info.nbytes - start]
                _read_exactly(file.fileno(), piece, info.file, name)
                yield piece.view(info.dtype)


def _read_exactly(fd: int, into: np.ndarray, path: Path, name: str) -> None:
    view = into.data
    while view:
        count = os.readv(fd, [view])
        if not count:
            raise CheckpointError("ends inside a tensor", path=path, item=name, hint="fetch this file again")
        view = view[count:]


def read_tensor_table(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a folder's model.safetensors, or of the shards that its index lists.

    config.json is not looked at, so this serves checkpoints of other architectures too.

    Raises:
        CheckpointError: no safetensors files, a damaged one, or an index that disagrees.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        return _read_sharded(index)
    if (folder / SINGLE_FILE).is_file():
        return read_safetensors_header(folder / SINGLE_FILE)
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        raise CheckpointError(
            "the index of the shards is missing",
            path=index,
            found=shards[0].name,
            hint=f"fetch {INDEX_FILE} too, or name a single file {SINGLE_FILE}",
        )
    pickles = sorted(
        file for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern)
    )
    if pickles:
        raise CheckpointError(
            "pickled weights are not read, because reading them can run code",
            path=pickles[0],
            expected="safetensors",
            hint="save the model with safe_serialization=True in a tool that you trust it with",
        )
    raise CheckpointError("holds no safetensors file", path=folder, expected=f"{SINGLE_FILE} or {INDEX_FILE}")


def _read_sharded(index: Path) -> dict[str, TensorInfo]:
    document = parse_safetensors_json(index.read_bytes(), index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            "has no weight map", path=index, item="weight_map", expected="tensor names to files"
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                "is not the name of a shard",
                path=index,
                item=name,
                found=repr(shard),
                expected="a .safetensors file",
            )
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if not path.is_file():
            raise CheckpointError("a shard is missing", path=path, hint="fetch this file")
        for name, info in read_safetensors_header(path).items():
            if name in tensors:
                raise CheckpointError(
                    "is in two shards", path=path, item=name, found=f"also in {tensors[name].file.name}"
                )
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    "is in this shard, but the index says otherwise",
                    path=path,
                    item=name,
                    found=weight_map.get(name, "not in the index"),
                    hint="fetch index and shards of one release",
                )
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                "the index names a tensor that is not in its shard",
                path=index.parent / shard,
                item=name,
                hint="fetch index and shards of one release",
            )
    return tensors
