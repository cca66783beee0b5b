"""How far two sets of logits lie apart. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sb_edge.util.errors import ParityError


@dataclass(frozen=True)
class Agreement:
    """Two sets of logits compared over all positions.

    Attributes:
        nmse: sum((x - y)^2) / sum(x^2), x the reference.
        kl: mean over positions of KL(softmax x || softmax y), nats.
        top1: share of positions, 0 to 1, whose largest logit is the same token's.
        worst_position: the position with the largest NMSE of its own.
        worst_nmse: that NMSE.
    """

    nmse: float
    kl: float
    top1: float
    worst_position: int
    worst_nmse: float


def _ratio(error: float, power: float, item: str | None = None) -> float:
    if error and not power:
        raise ParityError("the reference is all zeros: no ratio to it can be taken", item=item)
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


def log_softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits [vocab] as log-probabilities."""
    shifted = row - row.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def compare_logits(reference: NDArray[np.floating], other: NDArray[np.floating]) -> Agreement:
    """Compare logits row by row, in float64, so that only one row a side is ever widened.

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
        expected_log, found_log = log_softmax(exact), log_softmax(found)
        kl += float((np.exp(expected_log) * (expected_log - found_log)).sum())
        same += int(exact.argmax() == found.argmax())
    rows = len(reference)
    # Rounding can leave a sum of KL terms at -1e-17 where the two agree.
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
