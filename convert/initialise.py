"""Write a checkpoint with random weights in the public layout, for tests and speed measurements."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from sb_edge.arch.config import PRESETS, SpikingBrainConfig
from sb_edge.arch.tensors import expected_tensors
from sb_edge.convert.checkpoint.random_weights import encoded, normal
from sb_edge.convert.checkpoint.safetensors_file import DTYPES
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.util.progress import progress_bar

INITIALIZER_RANGE = 0.02
"""Standard deviation of matrices and biases, as `initializer_range` in the public release's config.json."""

GATE_BIAS = 4.0
"""Mean of the gate logits: log a = logsigmoid(4) / 16 = -0.0011, so that a state remembers about 900
tokens."""

_WITHOUT_BIAS = frozenset({"1b"})  # as Llama-3.2-1B


def init_checkpoint(
    preset: str, folder: Path, *, seed: int = 0, dtype: str = "bf16", max_shard_bytes: int = 5_000_000_000
) -> int:
    """Write a preset with random weights, in chunks, complete or not at all.

    Args:
        preset: a name in `sb_edge.arch.config.PRESETS`.
        folder: folder to write; must be empty or not exist.
        seed: random seed; the values do not depend on the type.
        dtype: type of every tensor: "bf16", "f16" or "f32".
        max_shard_bytes: maximum bytes of weights per file; a larger tensor gets its own file.

    Returns:
        Bytes of weights.

    Raises:
        OutputError: the folder is not empty or cannot be written.
    """
    return write_random_checkpoint(
        PRESETS[preset],
        folder,
        attention_bias=preset not in _WITHOUT_BIAS,
        seed=seed,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )


def write_random_checkpoint(
    config: SpikingBrainConfig,
    folder: Path,
    *,
    attention_bias: bool,
    seed: int = 0,
    dtype: str = "bf16",
    max_shard_bytes: int = 5_000_000_000,
) -> int:
    """As `init_checkpoint`, for any configuration.

    Raises:
        OutputError: the folder is not empty or cannot be written.
    """
    target = DTYPES[dtype.upper()]
    table = expected_tensors(config, attention_bias=attention_bias)
    shapes = {name: (spec.shape, target) for name, spec in table.items()}
    with CheckpointWriter(folder, config, shapes, max_shard_bytes) as writer:
        with progress_bar("writing random weights", writer.nbytes, unit="bytes") as advance:
            for name in shapes:
                values = initial_values(name, prod(table[name].shape), seed)
                chunks = (data.view(target) for data in encoded(values, dtype, advance))
                writer.write_chunks(name, chunks)
        return writer.nbytes


def initial_values(name: str, size: int, seed: int) -> Iterator[np.ndarray]:
    """Initial values of a tensor, float32, as one-dimensional chunks in one shared buffer.

    Norms are 1, so that activations keep their size; gates are open (`GATE_BIAS`); other values are normal.

    Args:
        name: name in the checkpoint.
        size: number of values.
        seed: random seed for the checkpoint.
    """
    if name.endswith("norm.weight"):
        yield np.ones(size, np.float32)
        return
    centre = GATE_BIAS if name.endswith("gk_proj.1.bias") else 0.0
    yield from normal(seed, name, size, INITIALIZER_RANGE, centre)
