"""Checkpoints in the public Hugging Face layout: config.json beside safetensors files, one or several.

Headers are checked here, field by field, before a byte of data is read, because the errors have to name the
file and the tensor (format: https://github.com/huggingface/safetensors, "Format"). Nothing is ever unpickled.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from sb_edge.arch.config import SpikingBrainConfig, load_config
from sb_edge.util.errors import CheckpointError
from sb_edge.util.files import atomic_directory, require_free_space, write_all

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""safetensors' name of a type: numpy's. Other types hold no weights of these models."""

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
_MAX_HEADER = 100_000_000  # the safetensors library's own limit
_DEFAULT_CHUNK = 1 << 20
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
        shape: as in PyTorch, [out, in] for a linear layer.
        dtype: numpy's; bfloat16 is ml_dtypes'.
        nbytes: size of the data.
        file: the shard.
        offset: of the data, from the start of the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    file: Path
    offset: int


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


def read_tensor(info: TensorInfo) -> np.ndarray:
    """A tensor as a read-only, memory-mapped array in its own type and shape."""
    if not info.nbytes:
        return np.zeros(info.shape, info.dtype)
    raw = np.memmap(info.file, mode="r", dtype=np.uint8, offset=info.offset, shape=(info.nbytes,))
    return raw.view(info.dtype).reshape(info.shape)


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
    document = _load_json(index.read_bytes(), index)
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


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Check one safetensors file's header against the file and list its tensors.

    Raises:
        CheckpointError: truncated, not safetensors, overlapping or out-of-range data, or a type that is not
            F32, F16 or BF16.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
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
        header = _load_json(file.read(length), path, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError("is not a JSON object", path=path, item="__metadata__")
    tensors = {name: _tensor_info(name, entry, path, 8 + length) for name, entry in header.items()}
    _check_layout(tensors, path, 8 + length, size)
    return tensors


def _load_json(data: bytes, path: Path, item: str | None = None) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError("is listed twice", path=path, item=twice)
        return document

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "is not valid JSON", path=path, item=item, found=str(error), hint="fetch this file again"
        ) from None
    if not isinstance(document, dict):
        raise CheckpointError("is not a JSON object", path=path, item=item, found=type(document).__name__)
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
        raise error("its data does not have its shape's size", f"{offsets[1] - offsets[0]} bytes", nbytes)
    return TensorInfo(tuple(shape), DTYPES[dtype], nbytes, path, data_start + offsets[0])


def _check_layout(tensors: Mapping[str, TensorInfo], path: Path, data_start: int, size: int) -> None:
    """The data must lie in the file without gaps or overlaps, as the format demands."""
    end = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            problem = "overlaps another tensor" if info.offset < end else "lies behind a gap"
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
            "goes on after its last tensor",
            path=path,
            found=f"{size} bytes",
            expected=end,
            hint="fetch this file again",
        )


class CheckpointWriter:
    """Writes a checkpoint folder in the public layout, one tensor at a time; complete or not at all.

    Use it as a context manager. Tensors may come in any order; all must have come when the block ends.

    Args:
        folder: must not exist, or be empty.
        config: becomes config.json.
        shapes: tensor name to (shape, type), in the order of the file; types as in `DTYPES`.
        max_shard_bytes: with more data than this, several files and an index are written.
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
        """Where the files are while the block runs; tokenizer files may be put here."""

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(_nbytes(*spec) for spec in self._shapes.values())

    def __enter__(self) -> CheckpointWriter:
        if self.folder.absolute().parent.is_dir():
            require_free_space(self.folder.absolute().parent, self.nbytes, "the checkpoint")
        self.path = self._stack.enter_context(atomic_directory(self.folder))
        try:
            self._begin()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self) -> None:
        (self.path / "config.json").write_text(
            json.dumps(self._config.to_json(), indent=2) + "\n", encoding="utf-8"
        )
        for number, names in enumerate(self._shards, 1):
            self._begin_shard(self.path / shard_name(number, len(self._shards)), names)
        if len(self._shards) > 1:
            weight_map = {name: self._places[name].file.name for name in self._shapes}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
            (self.path / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _begin_shard(self, path: Path, names: list[str]) -> None:
        type_names = {dtype: name for name, dtype in DTYPES.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            shape, dtype = self._shapes[name]
            end = offset + _nbytes(shape, dtype)
            header[name] = {"dtype": type_names[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the data is aligned
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._stack.callback(os.close, fd)
        self._files[path] = fd
        write_all(fd, len(text).to_bytes(8, "little") + text)
        for name in names:
            shape, dtype = self._shapes[name]
            place = 8 + len(text) + header[name]["data_offsets"][0]
            self._places[name] = TensorInfo(shape, dtype, _nbytes(shape, dtype), path, place)

    def write(self, name: str, array: np.ndarray) -> None:
        """Write a whole tensor, of the shape and type announced for it.

        Raises:
            CheckpointError: the name is unknown or already written, or shape or type differ.
        """
        info = self._places.get(name)
        if info is not None and tuple(array.shape) != info.shape:
            raise CheckpointError(
                "has another shape", item=name, found=list(array.shape), expected=list(info.shape)
            )
        self.write_chunks(name, [array])

    def write_chunks(self, name: str, chunks: Iterable[np.ndarray]) -> None:
        """Write a tensor from consecutive pieces of its values.

        Raises:
            CheckpointError: the name is unknown or already written, or type or size differ.
        """
        if name not in self._missing:
            known = "was already written" if name in self._places else "was not announced"
            raise CheckpointError(known, path=self.folder, item=name)
        info = self._places[name]
        fd = self._files[info.file]
        os.lseek(fd, info.offset, os.SEEK_SET)
        written = 0
        for chunk in chunks:
            if chunk.dtype != info.dtype:
                raise CheckpointError("has another type", item=name, found=chunk.dtype, expected=info.dtype)
            written += chunk.nbytes
            if written <= info.nbytes:
                write_all(fd, np.ascontiguousarray(chunk).reshape(-1).view(np.uint8))
        if written != info.nbytes:
            raise CheckpointError(
                "has another size", item=name, found=f"{written} bytes", expected=info.nbytes
            )
        self._missing.discard(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._missing:
            error = CheckpointError("was not written", path=self.folder, item=min(self._missing))
            kind, trace = type(error), error.__traceback__
            self._stack.__exit__(kind, error, trace)
            raise error
        self._stack.__exit__(kind, error, trace)


def shard_name(number: int, count: int) -> str:
    """The file name of shard `number` (from 1) of `count`, as in public checkpoints."""
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
