"""Choosing dead zones: savings and costs of a threshold on a projection's input.

Channel c of an input matters by |x_c| * w_c, with w_c the norm of the weight's column c. It is silent where
that is below tau, one for the projection; so its dead zone is tau / w_c. Nothing here knows an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARES = np.arange(20) / 20
"""Shares of silent channels that a projection can have, as nearly as the histogram tells them apart."""

_STEPS = 16
"""Bins of an octave of importance: 4.4 % wide."""

_LOWEST, _HIGHEST = -60, 60
"""Octaves told apart; what lies outside counts as the nearest."""

_BINS = (_HIGHEST - _LOWEST) * _STEPS


class Importances:
    """The importances of a projection's channels over the tokens of a text, as a histogram.

    Args:
        norms: [n], each column's norm.
    """

    def __init__(self, norms: NDArray[np.floating]) -> None:
        self.norms = norms.astype(np.float32)
        self._counts = np.zeros(_BINS, np.int64)
        self._energies = np.zeros(_BINS)

    def add(self, x: NDArray[np.float32]) -> None:
        """Count inputs, [T, n]."""
        values = np.abs(x) * self.norms
        # Each token counts alike: the huge entries of a few would hide what all others lose.
        energies = np.square(values, dtype=np.float64)
        energies /= np.maximum(energies.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        with np.errstate(divide="ignore"):
            places = np.log2(values.ravel())
        bins = np.clip((places - _LOWEST) * _STEPS, 0, _BINS - 1).astype(np.int64)
        self._counts += np.bincount(bins, minlength=_BINS)
        self._energies += np.bincount(bins, weights=energies.ravel(), minlength=_BINS)

    def curve(self) -> ZoneCurve:
        """What thresholds at about `SHARES` give."""
        silent, lost = (_below(values) for values in (self._counts, self._energies))
        edges = np.exp2(_LOWEST + np.arange(_BINS + 1) / _STEPS)
        # The last threshold with at most that share: at 0 the threshold is 0, nothing is silent.
        at = np.searchsorted(silent, SHARES, side="right") - 1
        taus = np.where(at == 0, 0.0, edges[at])
        taus[0], at[0] = 0.0, 0
        return ZoneCurve(taus, np.where(taus, silent[at], 0.0), np.where(taus, lost[at], 0.0))


@dataclass(frozen=True)
class ZoneCurve:
    """A projection's choices.

    Attributes:
        taus: [n], ascending from 0.
        silent: [n], share of the inputs' entries that are silent.
        errors: [n], share of a token's sum of (x_c w_c)^2 that those have, the mean over the tokens: the
            relative square error of the product, for columns that are independent.
    """

    taus: Floats
    silent: Floats
    errors: Floats


def _below(values: NDArray[np.generic]) -> Floats:
    """Of a histogram [n]: the share before each edge of a bin, [n + 1]."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return sums / (sums[-1] or 1.0)


def choose(
    curves: Sequence[ZoneCurve], gains: Floats, weights: Floats, trade: float, max_density: float
) -> NDArray[np.intp]:
    """Each projection's choice: the one with the largest saving - loss / trade.

    The saving is counted from `max_density`, where both products are assumed to be equally fast.

    Args:
        curves: Curves of the projections.
        gains: [n_projections], bytes that would be saved were all of its channels silent.
        weights: [n_projections], loss of an error of 1.
        trade: loss that may be paid for a unit of `gains`.
        max_density: above this share of active channels there is no saving: a projection stays dense.

    Returns:
        [n_projections], places in the curves; 0: dense.
    """
    chosen = np.zeros(len(curves), np.intp)
    for index, curve in enumerate(curves):
        saving = gains[index] * (1 - (1 - curve.silent) / max_density)
        value = np.where(saving > 0, saving * trade - weights[index] * curve.errors, -np.inf)
        value[0] = 0.0
        chosen[index] = int(np.argmax(value))
    return chosen


def zones(tau: float, norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """The dead zones of a projection's channels, [n]: tau / w_c; a column of zeros is never needed."""
    largest = np.finfo(np.float32).max
    if not tau:
        return np.zeros(len(norms), np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        return np.minimum(np.float64(tau) / norms, largest).astype(np.float32)
