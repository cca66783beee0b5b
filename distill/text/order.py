"""Which tokens a step gets: a function of seed, stage, phase and step, so that nothing has to be saved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sb_edge.util.errors import TrainingError

HELD_OUT_LENGTH = 512
"""Tokens of a sequence that is not trained on."""

LEAST_TRAINED = 19
"""Sequences of that length to train on for each held-out one, at least."""


def split_text(size: int, held_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on, [n], and held-out ones, [sequences, HELD_OUT_LENGTH], evenly spaced.

    Args:
        size: tokens of the text.
        held_out: tokens to hold out, at most; fewer, or none, of a short text.
    """
    blocks = size // HELD_OUT_LENGTH
    count = min(held_out // HELD_OUT_LENGTH, blocks // (LEAST_TRAINED + 1))
    chosen = (np.arange(count) * blocks + blocks // 2) // max(count, 1)
    held = chosen[:, None] * HELD_OUT_LENGTH + np.arange(HELD_OUT_LENGTH)
    return np.delete(np.arange(size), held.ravel()), held


class DataOrder:
    """Windows of one long row of tokens, in another random order, and cut at other places, every time round.

    Args:
        tokens: [n] integers.
        seed: Random seed of the run.
        stage: its number.
        phase: the number of the stage's length.
        length: tokens a window.

    Raises:
        TrainingError: too few tokens for one window.
    """

    def __init__(
        self, tokens: NDArray[np.integer], *, seed: int, stage: int, phase: int, length: int
    ) -> None:
        if len(tokens) < 2 * length:
            raise TrainingError(
                "the text is too short for sequences of this length",
                found=f"{len(tokens)} tokens",
                expected=f"at least {2 * length}, better millions",
                hint="give more --text, or shorter --lengths",
            )
        self._tokens = tokens
        self._key = (seed, stage, phase)
        self.length = length
        self.windows = len(tokens) // length - 1
        self._round = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)
        self._shift = 0

    def batch(self, step: int, sequences: int) -> NDArray[np.int64]:
        """The windows of a step, [sequences, length].

        Args:
            step: Step of this phase, from 0.
            sequences: a step, the same for all.
        """
        first = step * sequences
        return np.stack([self._window(number) for number in range(first, first + sequences)])

    def _window(self, number: int) -> NDArray[np.int64]:
        turn, at = divmod(number, self.windows)
        if turn != self._round:
            random = np.random.default_rng([*self._key, turn])
            self._shift = int(random.integers(self.length))
            self._order = random.permutation(self.windows)
            self._round = turn
        start = int(self._order[at]) * self.length + self._shift
        return self._tokens[start : start + self.length].astype(np.int64)
