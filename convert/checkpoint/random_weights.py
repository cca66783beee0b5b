"""Random weights: fast, the same for the same seed and name, in pieces."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

# Imported here and not at first use (numpy loads it lazily): Ctrl-C during that import can be lost.
from numpy.random import SFC64, Generator

_PIECE = 1 << 20


def normal(seed: int, name: str, size: int, scale: float) -> Iterator[np.ndarray]:
    """Normal values, float32, in one-dimensional pieces that share one buffer.

    Args:
        seed: of the whole checkpoint.
        name: of the tensor; with the seed it decides the values, whatever else is drawn.
        size: number of values.
        scale: standard deviation.
    """
    generator = Generator(SFC64([seed, zlib.crc32(name.encode())]))
    buffer = np.empty(min(size, _PIECE), np.float32)
    for start in range(0, size, _PIECE):
        piece = buffer[: min(_PIECE, size - start)]
        generator.standard_normal(dtype=np.float32, out=piece)
        piece *= np.float32(scale)
        yield piece
