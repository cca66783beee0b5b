"""Log-softmax, KL divergence and NMSE of logits, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sb_edge.util.errors import ParityError


@dataclass(frozen=True)
class Agreement:
    """Differences between two sets of logits over all positions.

    Attributes:
        nmse: sum((x - y)^2) / sum(x^2), where x is the reference.
        kl: mean over positions of KL(softmax x || softmax y), nats.
        top1: share of positions, 0 to 1, at which both have the same most likely token.
        worst_position: position with the largest NMSE.
        worst_nmse: NMSE at that position.
    """

    nmse: float
    kl: float
    top1: float
    worst_position: int
    worst_nmse: float


def _ratio(error: float, power: float, item: str | None = None) -> float:
    if error and not power:
        raise ParityError("the reference is all zeros, so its NMSE is undefined", item=item)
    return error / power if error else 0.0


def nmse(reference: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """sum((x - y)^2) / sum(x^2) over all elements, in float64.

    Raises:
        ParityError: shapes differ, a value is not finite, or the reference is all zeros.
    """
    _require_comparable(reference, other)
    error = power = 0.0
    for x, y in zip(reference, other, strict=True):
        exact = x.astype(np.float64)
        error += float(np.square(exact - y).sum())
        power += float(np.square(exact).sum())
    return _ratio(error, power)


def log_softmax(logits: NDArray[np.floating], dtype: type[np.floating] = np.float64) -> NDArray[np.floating]:
    """Log-probabilities over the last axis, computed in `dtype`.

    Args:
        logits: [vocab] or [n, vocab].
        dtype: type of computation and result.
    """
    rows: NDArray[np.floating] = logits.astype(dtype)
    rows -= rows.max(axis=-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return rows


def kl_divergence(reference: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """KL(reference || other) over the last axis, nats; rounding can leave it slightly below 0.

    Args:
        reference, other: log-probabilities, [vocab] or [n, vocab].

    Returns:
        [] or [n].
    """
    kl: NDArray[np.float64] = (np.exp(reference) * (reference - other)).sum(axis=-1, dtype=np.float64)
    return kl


def compare_logits(reference: NDArray[np.floating], other: NDArray[np.floating]) -> Agreement:
    """Compare logits row by row in float64; only one row of each side is converted at a time.

    Args:
        reference: [T, vocab], T >= 1.
        other: [T, vocab].

    Raises:
        ParityError: shapes differ, a value is not finite, or the reference is all zeros.
    """
    _require_comparable(reference, other)
    error = power = kl = 0.0
    same = 0
    worst_position, worst_nmse = 0, 0.0
    for position, (x, y) in enumerate(zip(reference, other, strict=True)):
        exact, found = x.astype(np.float64), y.astype(np.float64)
        row_error, row_power = float(np.square(exact - found).sum()), float(np.square(exact).sum())
        error, power = error + row_error, power + row_power
        row_nmse = _ratio(row_error, row_power, f"position {position}")
        if row_nmse > worst_nmse:
            worst_position, worst_nmse = position, row_nmse
        kl += float(kl_divergence(log_softmax(exact), log_softmax(found)))
        same += int(exact.argmax() == found.argmax())
    rows = len(reference)
    # Rounding can make the KL of equal logits slightly negative.
    return Agreement(_ratio(error, power), max(kl / rows, 0.0), same / rows, worst_position, worst_nmse)


def _require_comparable(reference: NDArray[np.floating], other: NDArray[np.floating]) -> None:
    if reference.shape != other.shape or reference.ndim != 2 or not reference.size:
        raise ParityError(
            "cannot be compared: shapes differ",
            found=list(other.shape),
            expected=f"{list(reference.shape)} as in the reference, two dimensions, not empty",
        )
    for name, rows in (("reference", reference), ("other", other)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ParityError("holds NaN or infinity", item=f"{name}, position {bad[0]}")
