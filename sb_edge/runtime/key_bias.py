"""Large key biases, as in Qwen2.5-7B, leave a narrow KV cache few bits for the differences of keys."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from sb_edge.arch.layer_map import recurrent_layers
from sb_edge.gguf.reader import GgufHeader, TensorEntry
from sb_edge.gguf.values import tensor_values
from sb_edge.util.progress import note

LIMITS = {"f16": 32.0, "bf16": 4.0, "q8_0": 2.0, "q5_0": 0.5, "q5_1": 0.5, "q4_0": 0.25, "q4_1": 0.25}
"""By cache type, root mean square of a bias above which `sb-edge parity` exceeds its tolerance."""


def note_large_key_biases(path: Path, header: GgufHeader, type_k: str) -> None:
    """Say once per file and type that a cache of this type costs precision."""
    names = {
        f"blk.{layer}.attn_k.bias" for layer, recurs in enumerate(recurrent_layers(header)) if not recurs
    }
    biases = tuple(tensor for tensor in header.tensors if tensor.name in names)
    if type_k in LIMITS and biases:
        _note(path, biases, type_k)


@cache
def _note(path: Path, biases: tuple[TensorEntry, ...], type_k: str) -> None:
    sizes = {bias.name: float(np.sqrt(np.square(tensor_values(bias)).mean())) for bias in biases}
    name = max(sizes, key=sizes.__getitem__)
    if sizes[name] > LIMITS[type_k]:
        note(
            f"{path}: {name}: keys lose precision in a {type_k} cache (RMS {sizes[name]:.3g}, at most "
            f"{LIMITS[type_k]:g} is exact enough); use -ctk f32"
        )
