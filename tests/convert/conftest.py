"""Checkpoints made for one test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Header = dict[str, Any]


class EditableCheckpoint:
    """A copy of the golden checkpoint whose header, data and config a test may spoil."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "model.safetensors"

    def edit_config(self, **changes: Any) -> None:
        """Change keys of config.json; None removes one."""
        path = self.folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def read(self) -> tuple[Header, bytes]:
        """Header and data of the safetensors file."""
        raw = self.weights.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        return json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def write(self, header: Header, data: bytes) -> None:
        """Replace the safetensors file."""
        text = json.dumps(header).encode()
        self.weights.write_bytes(len(text).to_bytes(8, "little") + text + data)

    def edit_header(self, change: Callable[[Header], None]) -> None:
        """Apply a change to the header, whatever that does to the file."""
        header, data = self.read()
        change(header)
        self.write(header, data)

    def edit_values(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Apply a change to a float32 tensor's values."""
        header, data = self.read()
        begin, end = header[name]["data_offsets"]
        values = np.frombuffer(data[begin:end], np.float32).copy()
        change(values)
        self.write(header, data[:begin] + values.tobytes() + data[end:])

    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor, float32."""
        header, data = self.read()
        header.pop("__metadata__", None)
        return {
            name: np.frombuffer(
                data, np.float32, offset=entry["data_offsets"][0], count=int(np.prod(entry["shape"]))
            )
            .reshape(entry["shape"])
            .copy()
            for name, entry in header.items()
        }

    def save(self, tensors: dict[str, np.ndarray]) -> None:
        """Replace all tensors (float32)."""
        write_safetensors(self.weights, tensors)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A float32 safetensors file, written without the code under test."""
    header, blobs, offset = {}, [], 0
    for name, values in tensors.items():
        blob = np.ascontiguousarray(values, np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


@pytest.fixture
def golden_copy(data: Path, tmp_path: Path) -> EditableCheckpoint:
    """The golden gla_swa checkpoint, to be spoiled."""
    return editable(data / "gla_swa", tmp_path)


@pytest.fixture
def w8aspike_copy(data: Path, tmp_path: Path) -> EditableCheckpoint:
    """The golden W8ASpike checkpoint, to be spoiled."""
    return editable(data / "w8aspike", tmp_path)


def editable(golden: Path, tmp_path: Path) -> EditableCheckpoint:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(golden / name, folder / name)
    return EditableCheckpoint(folder)


@pytest.fixture
def sharded_copy(golden_copy: EditableCheckpoint) -> EditableCheckpoint:
    """The same in two shards with an index; odd names in the second."""
    tensors = golden_copy.tensors()
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[0::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        write_safetensors(golden_copy.folder / shard, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    golden_copy.weights.unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (golden_copy.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return golden_copy
