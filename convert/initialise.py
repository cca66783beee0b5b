"""A random-weight checkpoint in the public layout, for tests and for measuring speed."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from sb_edge.config import PRESETS, SpikingBrainConfig
from sb_edge.convert.checkpoint import DTYPES, CheckpointWriter
from sb_edge.convert.numbers import encoder
from sb_edge.convert.random_weights import normal
from sb_edge.convert.tensors import expected_tensors
from sb_edge.progress import progress_bar

INITIALIZER_RANGE = 0.02
"""Standard deviation of the matrices, as in the public release's config.json."""

_GATE_BIAS = 4.0
"""Gate logits are about this: log a = logsigmoid(4) / 16 = -0.0011, so a state remembers about 900 tokens."""

_WITHOUT_BIAS = frozenset({"1b"})  # the shape of Llama-3.2-1B has none


def init_checkpoint(
    preset: str, folder: Path, *, seed: int = 0, dtype: str = "bf16", max_shard_bytes: int = 5_000_000_000
) -> int:
    """Write a preset with random weights: complete or not at all, streamed.

    Args:
        preset: a name in `PRESETS`.
        folder: must not exist, or be empty.
        seed: the same seed gives the same values.
        dtype: "bf16", "f16" or "f32", for every tensor.
        max_shard_bytes: size of a file, at most.

    Returns:
        Bytes of weights written.

    Raises:
        OutputError: the folder is not empty or cannot be written.
    """
    config = PRESETS[preset]
    table = expected_tensors(config, attention_bias=preset not in _WITHOUT_BIAS)
    target = DTYPES[dtype.upper()]
    shapes = {name: (spec.shape, target) for name, spec in table.items()}
    encode = encoder(dtype)
    with CheckpointWriter(folder, config, shapes, max_shard_bytes) as writer:
        with progress_bar("writing random weights", writer.nbytes, unit="bytes") as advance:
            for name, (shape, _) in shapes.items():
                writer.write_chunks(name, _encoded(config, seed, name, shape, encode, target, advance))
        return writer.nbytes
