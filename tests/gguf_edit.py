"""Copies of GGUFs with other keys, as a stranger may have written them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from sb_edge.gguf.reader import read_header


def rewrite(source: Path, target: Path, changes: dict[str, object]) -> None:
    """Copy a GGUF with other values; None leaves a key out."""
    header = read_header(source)
    writer = gguf.GGUFWriter(target, "spikingbrain")
    for key, value in {**header.metadata, **changes}.items():
        if value is None or key in ("general.architecture", "GGUF.version"):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, np.ndarray):
            writer.add_array(key, value.tolist())
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))
    for tensor in header.tensors:
        raw = np.memmap(tensor.file, np.uint8, "r", tensor.offset, (tensor.nbytes,))
        writer.add_tensor(tensor.name, raw.view(np.float32).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
