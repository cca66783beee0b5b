"""Encode floating-point values as bytes of a file, and check them for NaN and infinity.

All functions take one-dimensional float32, float16 or bfloat16 arrays. Rounding to float16 and bfloat16 is to
nearest, ties to even. Chunks of about one megabyte stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

_INTEGERS: dict[int, np.dtype[np.unsignedinteger]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
_INFINITY = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}

Encoder = Callable[[np.ndarray], np.ndarray | None]


def is_finite(values: np.ndarray, scratch: np.ndarray | None = None) -> bool:
    """True if no value is NaN or infinite.

    The check uses bit patterns: without the sign bit, patterns from infinity's upward are not finite.
    This takes one shift and one maximum, also for bfloat16, which numpy checks value by value.

    Args:
        values: array to check.
        scratch: uint8 buffer of at least `values.nbytes`; avoids an allocation.
    """
    if not values.size:
        return True
    integer = _INTEGERS[values.dtype.itemsize]
    out = None if scratch is None else scratch[: values.nbytes].view(integer)
    shifted = np.left_shift(values.view(integer), integer.type(1), out=out)
    return int(shifted.max()) < 2 * _INFINITY[values.dtype.name]


def encoder(kind: str) -> Encoder:
    """Return a function that encodes values as bytes (uint8) of type "f32", "f16", "bf16" or "q8_0".

    The function returns None if a value exceeds the range of the type. For "q8_0" it takes multiples of 32
    values.
    """
    return {"f32": _to_f32, "f16": _to_f16, "bf16": _to_bf16, "q8_0": _to_q8_0}[kind]


def to_float32(values: np.ndarray) -> np.ndarray:
    """The values as float32; float32 is not copied."""
    if values.dtype == ml_dtypes.bfloat16:
        # bfloat16 is the upper half of float32
        wide = values.view(np.uint16).astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return values.astype(np.float32, copy=False)


def _to_f32(values: np.ndarray) -> np.ndarray:
    return to_float32(values).view(np.uint8)


def _to_f16(values: np.ndarray) -> np.ndarray | None:
    if values.dtype == np.float16:
        return values.view(np.uint8)
    with np.errstate(over="ignore"):
        narrow = to_float32(values).astype(np.float16)
    return narrow.view(np.uint8) if is_finite(narrow) else None


def _to_bf16(values: np.ndarray) -> np.ndarray | None:
    if values.dtype == ml_dtypes.bfloat16:
        return values.view(np.uint8)
    bits = to_float32(values).view(np.uint32)
    # round: add just under half of the dropped part, plus one if the kept part is odd
    rounded = np.right_shift(bits, np.uint32(16))
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    narrow = rounded.astype(np.uint16).view(ml_dtypes.bfloat16)
    return narrow.view(np.uint8) if is_finite(narrow) else None


def _to_q8_0(values: np.ndarray) -> np.ndarray | None:
    """Blocks of 32: a float16 scale max|x| / 127 and 32 int8 (ggml's block_q8_0), as ggml rounds them.

    `gguf.quants` gives the same bytes, several times slower.
    """
    wide = to_float32(values).reshape(-1, 32)
    scales = np.abs(wide).max(axis=1, keepdims=True) / np.float32(127)
    blocks = np.empty((len(wide), 34), np.uint8)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # scales of or near zero
        codes = wide * np.where(scales == 0, np.float32(0), 1 / scales)
        # Round ties away from zero by truncation; adding exactly 0.5 would round 0.49999997 to 1.
        codes += np.copysign(np.nextafter(np.float32(0.5), np.float32(0)), codes)
        halves = scales.astype(np.float16)
        blocks[:, :2] = halves.view(np.uint8)
        blocks[:, 2:] = codes.astype(np.int8).view(np.uint8)
    return blocks.reshape(-1) if is_finite(halves.reshape(-1)) else None
