"""Spike coding: real numbers to integer counts, counts to spike trains over virtual time steps, and back.

Adaptive threshold and codings of the technical report (arXiv 2509.05276, section 3.3). Every function takes a
NumPy array or a PyTorch tensor and returns the same kind with the same values. PyTorch is needed only for
tensors. Both libraries have the names used here, so one implementation serves both.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sb_edge.arch.spike_plan import require_k
from sb_edge.util.errors import SpikeError

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray, Tensor)

MIN_THRESHOLD = 1e-5
MAX_THRESHOLD = 1e4

_LAST_SHIFT = 62
"""Largest defined shift of an int64; it leaves only the sign of a count."""


class Coding(StrEnum):
    """Coding of counts as spike trains: the rows of the report's table."""

    BINARY = "binary"
    TERNARY = "ternary"
    BITWISE = "bitwise"
    BIDIRECTIONAL = "bitwise-bidirectional"
    TWOS_COMPLEMENT = "bitwise-twos-complement"


UNSIGNED = (Coding.BINARY, Coding.BITWISE)
"""Codings without negative counts."""

_UNARY = (Coding.BINARY, Coding.TERNARY)
_WITH_MINUS_ONE = (Coding.TERNARY, Coding.BIDIRECTIONAL)


def threshold(x: Array, k: float) -> Array:
    """Adaptive threshold of every row, clamp(mean|x| / k, 1e-5, 1e4).

    Args:
        x: [..., n] real numbers, n >= 1. A row is the input of a projection for one token, or one head.
        k: a positive number; larger means more spikes.

    Returns:
        [..., 1] float32. The mean is computed in float64, rounded to float32, and divided by k.

    Raises:
        SpikeError: k is not a positive number.
    """
    require_k(k, "k")
    xp = _library(x)
    mean = xp.asarray(xp.mean(abs(x), axis=-1, keepdims=True, dtype=xp.float64), dtype=xp.float32)
    clamped: Array = xp.clip(mean / xp.asarray(k, dtype=xp.float32), MIN_THRESHOLD, MAX_THRESHOLD)
    return clamped


def spike_counts(x: Array, k: float) -> tuple[Array, Array]:
    """round(x / threshold), half to even, not clipped: rare channels have hundreds or thousands ("bursts").

    Args:
        x: [..., n] real numbers, n >= 1. The quotient is float64 for float64, else float32.
        k: a positive number.

    Returns:
        Counts, int32 [..., n], and threshold, float32 [..., 1]: x is approximately counts * threshold.

    Raises:
        SpikeError: k is not a positive number, or a count is NaN, infinite or beyond int32.
    """
    step = threshold(x, k)
    return _int32(_library(x).round(x / step)), step


def int8_round(x: Array) -> Array:
    """Round rows to symmetric INT8, as W8ASpike rounds K and V per token and head.

    Args:
        x: [..., n] real numbers, n >= 1.

    Returns:
        [..., n]: integer multiples, half to even, of each row's float32 scale clamp(max|x| / 127, 1e-5, 1e4).
            float64 for float64, else float32.
    """
    xp = _library(x)
    largest = xp.asarray(xp.amax(abs(x), axis=-1, keepdims=True), dtype=xp.float32)
    scale = xp.clip(largest / 127, MIN_THRESHOLD, MAX_THRESHOLD)
    rounded: Array = xp.round(x / scale) * scale
    return rounded


def steps(coding: Coding, largest: int) -> int:
    """T, the number of virtual time steps for counts up to `largest`.

    Args:
        coding: coding of counts as trains.
        largest: largest |count|, >= 0.

    Raises:
        SpikeError: `largest` is negative.
    """
    if largest < 0:
        raise SpikeError("cannot be negative", item="largest", found=largest, expected="the largest |count|")
    if coding in _UNARY:
        return largest
    bits = int(largest).bit_length()  # ceil(log2(largest + 1)), exactly
    return max(2, bits + 1) if coding == Coding.TWOS_COMPLEMENT else bits


def encode(counts: Array, coding: Coding, n_steps: int | None = None) -> Array:
    """Encode counts as trains.

    Binary and ternary codings repeat sign(count) |count| times, followed by zeros. Bitwise codings send the
    bits of |count| (bidirectional: times sign(count)), or the bits of count mod 2^T in two's complement, most
    significant bit first.

    Args:
        counts: int32, any shape.
        coding: coding of counts as trains.
        n_steps: T; None: the minimum for the largest |count|.

    Returns:
        int8 [T, *counts.shape] of 0 and 1, and -1 in ternary and bidirectional trains.

    Raises:
        SpikeError: a negative count in an unsigned coding, or a count that does not fit `n_steps`.
    """
    xp = _library(counts)
    wide = xp.asarray(counts, dtype=xp.int64)  # int32 does not hold |-2^31|
    low, high = (int(wide.min()), int(wide.max())) if 0 not in wide.shape else (0, 0)
    n_steps = steps(coding, max(-low, high)) if n_steps is None else n_steps
    _require_fit(coding, n_steps, low, high)
    if coding in _UNARY:
        train = abs(wide) > _column(range(n_steps), wide)
    else:
        shifts = [min(bit, _LAST_SHIFT) for bit in reversed(range(n_steps))]
        values = wide if coding == Coding.TWOS_COMPLEMENT else abs(wide)
        train = (values >> _column(shifts, wide)) & 1
    spikes: Array = xp.asarray(train, dtype=xp.int8)
    return spikes * xp.asarray(xp.sign(wide), dtype=xp.int8) if coding in _WITH_MINUS_ONE else spikes


def decode(train: Array, coding: Coding) -> Array:
    """Decode trains to counts: the sum (binary, ternary), or the sum weighted by place value.

    Args:
        train: [T, ...] of 0 and 1, and -1 in ternary and bidirectional trains; T >= 2 in two's complement.
        coding: coding of counts as trains.

    Returns:
        int32 [...].

    Raises:
        SpikeError: a value is not in the coding, there are too few steps, or a count is beyond int32.
    """
    xp = _library(train)
    _require_spikes(train, coding)
    wide = xp.asarray(train, dtype=xp.int64)
    if coding in _UNARY:
        return _int32(wide.sum(0))
    counts = xp.zeros_like(wide.sum(0))
    for step, spikes in enumerate(wide):
        counts = 2 * counts + (-spikes if step == 0 and coding == Coding.TWOS_COMPLEMENT else spikes)
    return _int32(counts)


def _library(x: np.ndarray | Tensor) -> ModuleType:
    """numpy or torch, by the kind of the array, without an import of torch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def _column(values: Any, like: Any) -> Any:
    """Integers as int64 [T, 1, ..., 1] on the device of `like`, to broadcast against it."""
    column = np.array(values, dtype=np.int64).reshape(-1, *[1] * like.ndim)
    return column if isinstance(like, np.ndarray) else like.new_tensor(column)


def _int32(values: Array) -> Array:
    """Convert integers to int32; SpikeError if one is NaN, infinite or out of range."""
    xp = _library(values)
    if not bool(((values >= -(2**31)) & (values < 2**31)).all()):
        raise SpikeError("is NaN, infinite or beyond int32", item="a count")
    counts: Array = xp.asarray(values, dtype=xp.int32)
    return counts


def _require_fit(coding: Coding, n_steps: int, low: int, high: int) -> None:
    """Refuse counts from `low` to `high` that a train of `n_steps` in this coding cannot represent."""
    if low < 0 and coding in UNSIGNED:
        raise SpikeError("carries no negative counts", item=coding, found=low, hint="use a signed coding")
    if n_steps < steps(coding, 0):
        raise SpikeError("too few time steps", item=coding, found=n_steps, expected=f">= {steps(coding, 0)}")
    if coding == Coding.TWOS_COMPLEMENT:
        least, most = -(2 ** (n_steps - 1)), 2 ** (n_steps - 1) - 1
    else:
        most = n_steps if coding in _UNARY else 2**n_steps - 1
        least = -most
    if low < least or high > most:
        raise SpikeError(
            f"a count does not fit {n_steps} time steps",
            item=coding,
            found=low if low < least else high,
            expected=f"{least} to {most}",
        )


def _require_spikes(train: Any, coding: Coding) -> None:
    """Refuse trains that are too short for the coding or have values outside it."""
    if len(train) < steps(coding, 0):
        raise SpikeError(
            "too few time steps", item=coding, found=len(train), expected=f">= {steps(coding, 0)}"
        )
    least = -1 if coding in _WITH_MINUS_ONE else 0
    if 0 not in train.shape and not (least <= int(train.min()) and int(train.max()) <= 1):
        found = f"values from {int(train.min())} to {int(train.max())}"
        raise SpikeError("not a spike train", item=coding, found=found, expected=f"{least} to 1")
