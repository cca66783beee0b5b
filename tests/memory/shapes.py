"""GGUF files of real shapes whose tensor data is a hole: gigabytes to the engine, kilobytes on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest import mock

import gguf
import numpy as np

from sb_edge.arch import ARCH
from sb_edge.arch.config import PRESETS
from sb_edge.arch.tensors import TensorLayout, expected_tensors
from sb_edge.bench.baselines.lfm2 import write_lfm2_gguf
from sb_edge.bench.baselines.llama import write_llama_gguf
from sb_edge.bench.baselines.rwkv7 import write_rwkv7_gguf
from sb_edge.convert.convert import add_hyperparameters
from sb_edge.gguf import writer
from sb_edge.gguf.reader import padded
from sb_edge.gguf.writer import PlannedTensor, write_gguf


def _hole(
    file: Path,
    tensors: Sequence[PlannedTensor],
    data: Callable[[PlannedTensor], Iterable[np.ndarray]],
    alignment: int,
) -> None:
    with file.open("ab") as stream:
        size = padded(file.stat().st_size, alignment)
        stream.truncate(size + sum(padded(tensor.nbytes, alignment) for tensor in tensors))


def _write_spikingbrain(path: Path) -> None:
    config = PRESETS["1b"]
    tensors = [
        PlannedTensor(
            spec.gguf_name,
            name,
            spec.shape,
            gguf.GGMLQuantizationType.F32
            if spec.keep_f32 or len(spec.shape) == 1
            else gguf.GGMLQuantizationType.F16,
        )
        for name, spec in expected_tensors(config, attention_bias=False).items()
    ]

    def metadata(out: gguf.GGUFWriter) -> None:
        add_hyperparameters(out, config, TensorLayout(False, 16))
        out.add_tokenizer_model("no_vocab")

    write_gguf(path, ARCH, tensors, metadata, lambda tensor: [])


WRITERS: dict[str, Callable[[Path], object]] = {
    "llama": write_llama_gguf,
    "spikingbrain": _write_spikingbrain,
    "lfm2": write_lfm2_gguf,
    "rwkv7": write_rwkv7_gguf,
}


def write_hollow(arch: str, path: Path) -> Path:
    """Write the 1B, 1.2B or 1.5B shape of an architecture without its data."""
    with (
        mock.patch.object(writer, "append_tensors", _hole),
        mock.patch("sb_edge.bench.baselines.random_gguf.require_free_space", lambda *_: None),
    ):
        WRITERS[arch](path)
    return path
