"""How to share out spikes: which k each coded input gets.

Nothing here knows an engine; docs/tuning-k.md derives the rule.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEPS = 100
"""Halvings of a bracket in float64: more change nothing."""


def interpolate_costs(ks: Array, costs: Array, grid: Array) -> Array:
    """Costs measured at some k, at others: linear in log k, as the number of bits in |s| is.

    Args:
        ks: [m], ascending.
        costs: [m, n_sites], cost of each input at each of them.
        grid: [n_grid], within `ks`.

    Returns:
        [n_sites, n_grid].
    """
    places = np.log(ks)
    return np.stack([np.interp(np.log(grid), places, column) for column in costs.T])


def predicted_loss(sensitivities: Array, ks: Array) -> float:
    """sum of s_g / k_g^2: rounding to multiples of Vth, inverse to k, is noise of power Vth^2 / 12.

    Args:
        sensitivities: [n_sites], each input's loss at k = 1, nats a token.
        ks: [n_sites].
    """
    return float((sensitivities / ks**2).sum())


def allocate(sensitivities: Array, costs: Array, grid: Array, limit: float) -> Array:
    """The cheapest k of every input with a predicted loss of at most `limit`.

    Each input minimises cost + weight * loss on its own; the least weight that keeps the limit is bisected.
    Such a choice is the cheapest of all that lose no more (Everett 1963, doi 10.1287/opre.11.3.399).

    Args:
        sensitivities: [n_sites], >= 0, each input's loss at k = 1, nats a token.
        costs: [n_sites, n_grid], > 0.
        grid: [n_grid], the values that k can have, ascending.
        limit: Maximum loss, nats per token; > 0.

    Returns:
        [n_sites]. The last of `grid` everywhere if even that loses more.
    """
    losses = sensitivities[:, None] / grid**2

    def choose(weight: float) -> Array:
        chosen: Array = grid[np.argmin(costs + weight * losses, axis=1)]
        return chosen

    finest = np.full(len(sensitivities), grid[-1])
    if predicted_loss(sensitivities, finest) > limit:
        return finest
    low, high = -60.0, 60.0  # log of the weight in units of cost over limit
    unit = costs.max() / limit
    best = finest
    for _ in range(_STEPS):
        middle = (low + high) / 2
        ks = choose(unit * math.exp(middle))
        if predicted_loss(sensitivities, ks) <= limit:
            best, high = ks, middle
        else:
            low = middle
    return best


def saving(reference: Array, other: Array) -> float:
    """By how much one curve's costs lie below another's where they lose the same.

    Args:
        reference, other: [n, 2], cost and loss > 0 of each point, n >= 2; costs are interpolated in the
            logarithm of the loss.

    Returns:
        The mean of 1 - cost / cost of `reference` over the losses that both reach; 0 if there are none.
    """
    curves = [curve[np.argsort(curve[:, 1])] for curve in (reference, other)]
    places = [np.log(curve[:, 1]) for curve in curves]
    low, high = max(place[0] for place in places), min(place[-1] for place in places)
    if low >= high:
        return 0.0
    at = np.linspace(low, high, 101)
    theirs, ours = (np.interp(at, place, curve[:, 0]) for place, curve in zip(places, curves, strict=True))
    return float((1 - ours / theirs).mean())
