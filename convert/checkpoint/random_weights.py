"""Random weights, generated and encoded in chunks; seed and name of a tensor determine its values."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np

# Imported here because numpy loads it lazily, and a Ctrl-C during that import can be lost.
from numpy.random import SFC64, Generator

from sb_edge.gguf.floats import encoder
from sb_edge.util.progress import Advance

_CHUNK = 1 << 20


def normal(seed: int, name: str, size: int, scale: float, mean: float = 0.0) -> Iterator[np.ndarray]:
    """Normal values, float32, as one-dimensional chunks in one shared buffer.

    Args:
        seed: random seed for the whole checkpoint.
        name: name of the tensor; its values depend only on seed and name.
        size: number of values.
        scale: standard deviation.
        mean: mean of the values.
    """
    generator = Generator(SFC64([seed, zlib.crc32(name.encode())]))
    buffer = np.empty(min(size, _CHUNK), np.float32)
    for start in range(0, size, _CHUNK):
        chunk = buffer[: min(_CHUNK, size - start)]
        generator.standard_normal(dtype=np.float32, out=chunk)
        chunk *= np.float32(scale)
        if mean:
            chunk += np.float32(mean)
        yield chunk


def encoded(values: Iterable[np.ndarray], kind: str, advance: Advance) -> Iterator[np.ndarray]:
    """Initial values, which are in the range of every type, as bytes (uint8) of a type of `encoder`."""
    encode = encoder(kind)
    for chunk in values:
        data = encode(chunk)
        if data is not None:
            advance(data.nbytes)
            yield data
