"""Spike coding: real numbers to integer counts, counts to trains over virtual time steps, and back.

The adaptive threshold and the codings of the technical report (arXiv 2509.05276, section 3.3). Every function
takes a NumPy array or a PyTorch tensor and gives the same kind back, with the same values; PyTorch is needed
only by those who pass a tensor. The two libraries share the names used here, so the code is written once.
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
"""Shifting an int64 by more is undefined; by this much, nothing but the sign is left of a count anyway."""


class Coding(StrEnum):
    """How a count becomes a train: the rows of the report's table."""

    BINARY = "binary"
    TERNARY = "ternary"
    BITWISE = "bitwise"
    BIDIRECTIONAL = "bitwise-bidirectional"
    TWOS_COMPLEMENT = "bitwise-twos-complement"


UNSIGNED = (Coding.BINARY, Coding.BITWISE)
"""They carry no negative counts."""

_UNARY = (Coding.BINARY, Coding.TERNARY)
_WITH_MINUS_ONE = (Coding.TERNARY, Coding.BIDIRECTIONAL)


def threshold(x: Array, k: float) -> Array:
    """The adaptive threshold of every row, clamp(mean|x| / k, 1e-5, 1e4).

    Args:
        x: [..., n] real numbers, n >= 1. A row is one token's input of a projection, or one head's.
        k: a positive number; larger means more spikes.

    Returns:
        [..., 1] float32. The mean is taken in float64 and rounded to float32, then divided by k.

    Raises:
        SpikeError: k is not a positive number.
    """
    require_k(k, "k")
    xp = _library(x)
    mean = xp.asarray(xp.mean(abs(x), axis=-1, keepdims=True, dtype=xp.float64), dtype=xp.float32)
    clamped: Array = xp.clip(mean / xp.asarray(k, dtype=xp.float32), MIN_THRESHOLD, MAX_THRESHOLD)
    return clamped


def spike_counts(x: Array, k: float) -> tuple[Array, Array]:
    """round(x / threshold), half to even, not clipped: rare channels give hundreds or thousands ("bursts").

    Args:
        x: [..., n] real numbers, n >= 1. Of float64 the quotient is taken in float64, else in float32.
        k: a positive number.

    Returns:
        Counts, int32 [..., n], and the threshold, float32 [..., 1]: x is about counts * threshold.

    Raises:
        SpikeError: k is not a positive number, or a count is NaN, infinite or beyond int32.
    """
    step = threshold(x, k)
    return _int32(_library(x).round(x / step)), step


def int8_round(x: Array) -> Array:
    """Round rows to symmetric INT8, as W8ASpike does with K and V per token and head.

    Args:
        x: [..., n] real numbers, n >= 1.

    Returns:
        [..., n]: whole multiples, half to even, of each row's clamp(max|x| / 127, 1e-5, 1e4), a float32. In
        float64 for float64, otherwise in float32.
    """
    xp = _library(x)
    largest = xp.asarray(xp.amax(abs(x), axis=-1, keepdims=True), dtype=xp.float32)
    scale = xp.clip(largest / 127, MIN_THRESHOLD, MAX_THRESHOLD)
    rounded: Array = xp.round(x / scale) * scale
    return rounded


def steps(coding: Coding, largest: int) -> int:
    """T, the number of virtual time steps that counts up to `largest` need.

    Args:
        coding: how counts become trains.
        largest: the largest |count|, >= 0.

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
    """Counts to trains.

    Binary and ternary repeat sign(count), |count| times, then fall silent. The bitwise ones send the bits of
    |count|, bidirectional ones times sign(count), or the bits of count mod 2^T in two's complement; the most
    significant bit comes first.

    Args:
        counts: int32, any shape.
        coding: how counts become trains.
        n_steps: T; None takes what the largest |count| needs.

    Returns:
        int8 [T, *counts.shape]; values 0 and 1, with -1 in ternary and bidirectional trains.

    Raises:
        SpikeError: a negative count in an unsigned coding, or a count that does not fit `n_steps`.
    """
    xp = _library(counts)
    wide = xp.asarray(counts, dtype=xp.int64)  # |-2^31| is no int32
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
    """Trains to counts: the sum (binary, ternary), or the sum weighted by the bits' places.

    Args:
        train: [T, ...] of 0 and 1, and -1 in ternary and bidirectional trains; T >= 2 in two's complement.
        coding: how counts become trains.

    Returns:
        int32 [...].

    Raises:
        SpikeError: a value that the coding does not have, too few steps, or a count beyond int32.
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
    """numpy or torch, whichever made the array; torch is never imported for it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def _column(values: Any, like: Any) -> Any:
    """Integers as int64 [T, 1, ..., 1], to meet an array of any shape on its device."""
    column = np.array(values, dtype=np.int64).reshape(-1, *[1] * like.ndim)
    return column if isinstance(like, np.ndarray) else like.new_tensor(column)


def _int32(values: Array) -> Array:
    """Whole numbers as int32, SpikeError where one is NaN, infinite or out of range."""
    xp = _library(values)
    if not bool(((values >= -(2**31)) & (values < 2**31)).all()):
        raise SpikeError("is NaN, infinite or beyond int32", item="a count")
    counts: Array = xp.asarray(values, dtype=xp.int32)
    return counts


def _require_fit(coding: Coding, n_steps: int, low: int, high: int) -> None:
    """Refuse counts from `low` to `high` that a train of `n_steps` in this coding cannot carry."""
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
    """Refuse trains that are too short for their coding or hold what it cannot send."""
    if len(train) < steps(coding, 0):
        raise SpikeError(
            "too few time steps", item=coding, found=len(train), expected=f">= {steps(coding, 0)}"
        )
    least = -1 if coding in _WITH_MINUS_ONE else 0
    if 0 not in train.shape and not (least <= int(train.min()) and int(train.max()) <= 1):
        found = f"values from {int(train.min())} to {int(train.max())}"
        raise SpikeError("not a spike train", item=coding, found=found, expected=f"{least} to 1")
