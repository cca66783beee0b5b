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
from sb_edge.util.input_files import open_input, read_input

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_DEFAULT_CHUNK = 1 << 20


class Checkpoint:
    """An open checkpoint folder; use `Checkpoint.open`."""

    def __init__(self, folder: Path, config: SpikingBrainConfig, tensors: dict[str, TensorInfo]) -> None:
        self.folder = folder
        self.config = config
        self._tensors = tensors

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open a folder; check its config.json and all safetensors headers.

        Raises:
            CheckpointError: the folder does not exist or has only pickle files, or a shard is missing,
                truncated or corrupt.
            ConfigError: config.json is missing or invalid.
        """
        folder = Path(folder)
        if not folder.exists():
            raise CheckpointError(
                "not found", path=folder, hint="download the checkpoint and give its folder"
            )
        if not folder.is_dir():
            raise CheckpointError("is a file", path=folder, expected="the checkpoint folder")
        return cls(folder, load_config(folder / "config.json"), read_tensor_table(folder))

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in file order."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape, type and position of a tensor.

        Raises:
            CheckpointError: the tensor does not exist.
        """
        if name not in self._tensors:
            raise CheckpointError("there is no such tensor", path=self.folder, item=name)
        return self._tensors[name]

    def value_error(self, name: str, index: int, value: object, message: str, hint: str) -> CheckpointError:
        """The error of a tensor's value at a place in its flat order."""
        info = self.info(name)
        place = ", ".join(str(int(i)) for i in np.unravel_index(index, info.shape))
        return CheckpointError(message, path=info.file, item=name, found=f"{value} at [{place}]", hint=hint)

    def read(self, name: str) -> np.ndarray:
        """Read a tensor as a read-only memory map in its own type and shape.

        Raises:
            CheckpointError: the tensor does not exist.
        """
        return read_tensor(self.info(name))

    def chunks(
        self, name: str, max_bytes: int = _DEFAULT_CHUNK, *, multiple: int = 1, buffers: int = 1
    ) -> Iterator[np.ndarray]:
        """Read a tensor's values in order, as one-dimensional chunks in its own type.

        Memory use does not depend on the tensor: a chunk is overwritten `buffers` chunks later.

        Args:
            name: name of the tensor.
            max_bytes: maximum size of a chunk, unless `multiple` values need more.
            multiple: divides the number of values of every chunk except the last.
            buffers: number of chunks that are valid at the same time.

        Raises:
            CheckpointError: the tensor does not exist, or the file was truncated after it was opened.
        """
        info = self.info(name)
        step = max(max_bytes // info.dtype.itemsize // multiple, 1) * multiple * info.dtype.itemsize
        ring = itertools.cycle([np.empty(min(step, info.nbytes), np.uint8) for _ in range(buffers)])
        with open_input(info.file, CheckpointError) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), info.offset, info.nbytes, os.POSIX_FADV_SEQUENTIAL)
            file.seek(info.offset)
            for start in range(0, info.nbytes, step):
                chunk = next(ring)[: info.nbytes - start]
                _read_exactly(file.fileno(), chunk, info.file, name)
                yield chunk.view(info.dtype)


def _read_exactly(fd: int, into: np.ndarray, path: Path, name: str) -> None:
    view = into.data
    while view:
        count = os.readv(fd, [view])
        if not count:
            raise CheckpointError("ends inside a tensor", path=path, item=name, hint="fetch this file again")
        view = view[count:]


def read_tensor_table(folder: Path) -> dict[str, TensorInfo]:
    """List the tensors of a folder's model.safetensors, or of the shards in its index.

    Does not read config.json, and so also serves checkpoints of other architectures.

    Raises:
        CheckpointError: there are no safetensors files, one is damaged, the index differs from the shards, or
            a PEFT adapter lies beside them.
    """
    _refuse_adapter(folder)
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
            hint=f"fetch {INDEX_FILE}, or rename a single file to {SINGLE_FILE}",
        )
    pickles = sorted(
        file for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern)
    )
    if pickles:
        raise CheckpointError(
            "pickled weights are refused, because they can run code",
            path=pickles[0],
            expected="safetensors",
            hint="save the model with safe_serialization=True in a tool that you trust",
        )
    raise CheckpointError("has no safetensors file", path=folder, expected=f"{SINGLE_FILE} or {INDEX_FILE}")


def _refuse_adapter(folder: Path) -> None:
    """transformers would apply a PEFT adapter that lies beside the weights."""
    adapters = [name for name in ADAPTER_FILES if (folder / name).exists()]
    if adapters:
        raise CheckpointError(
            "a PEFT adapter is not supported",
            path=folder / adapters[0],
            hint="merge it into its base (merge_and_unload) and save the result, or move it away",
        )


def _read_sharded(index: Path) -> dict[str, TensorInfo]:
    document = parse_safetensors_json(read_input(index, CheckpointError), index)
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
                    "is not in the shard that the index gives",
                    path=path,
                    item=name,
                    found=weight_map.get(name, "not in the index"),
                    hint="fetch index and shards of one release",
                )
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                "is in the index, but not in the shard",
                path=index.parent / shard,
                item=name,
                hint="fetch index and shards of one release",
            )
    return tensors
