"""Tuning dead zones: the most bytes not fetched within a perplexity budget. See docs/sparse.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch.sparse_plan import MAX_DENSITY_KEY, SPARSE_PROJECTIONS, zones_name
from sb_edge.evaluate.perplexity import predictions, token_losses
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.rewrite import set_number
from sb_edge.gguf.values import tensor_bytes
from sb_edge.quant.sparse.dead_zones import Floats, ZoneCurve, choose, zones
from sb_edge.quant.sparse.inputs import Key
from sb_edge.quant.tuning import PROBE_TOKENS, Text, search
from sb_edge.runtime.session import Model
from sb_edge.runtime.sparse_counters import SparseCounts, count_products
from sb_edge.util.errors import SparseError
from sb_edge.util.logits import kl_divergence
from sb_edge.util.progress import Advance, progress_bar

DEFAULT_MAX_DENSITY = 0.18
"""Share of columns that takes as long as all rows, since columns are fetched one by one."""

PROBE_PLACE = 10
"""In a curve: half of the channels are silent where a kind's loss is measured."""

LEAST_LOSS = 1e-9
"""Smaller ones are float32's rounding."""

STEP = 2.0
"""The trade-off goes down by this factor until the budget is kept."""

LARGEST_TRADE = 64.0
"""Where it begins, in units of the loss that the budget is."""

MOST_STEPS = 16

HALVINGS = 3
"""Relative size of the last step."""


@dataclass(frozen=True)
class Candidate:
    """A projection that could have a sparse layout.

    Attributes:
        key: layer and name.
        norms: float32 [n], of the columns of its weight.
        curve: its choices.
        nbytes: Bytes of its weight by rows in the quantized file.
    """

    key: Key
    norms: NDArray[np.float32]
    curve: ZoneCurve
    nbytes: int


@dataclass(frozen=True)
class Trial:
    """One trade-off, measured.

    Attributes:
        trade: nats that may be paid for all the bytes of the candidates.
        choice: For each candidate, the index in its curve; 0: dense.
        ratio: perplexity over that of the dense product, both token by token.
        saved: predicted share of the candidates' bytes that is not fetched.
        counts: Counters of the engine.
    """

    trade: float
    choice: tuple[int, ...]
    ratio: float
    saved: float
    counts: SparseCounts


@dataclass(frozen=True)
class ZoneTuning:
    """Measurements and choice.

    Attributes:
        dense: perplexity of the dense product, token by token.
        losses: For each kind of projection, nats per token that an error of 1 in all its layers would cost:
            the divergence at `PROBE_PLACE` from the same columns without dead zones.
        trials: by trade-off.
        chosen: the one that saves most within the budget.
    """

    dense: float
    losses: dict[str, float]
    trials: tuple[Trial, ...]
    chosen: Trial


def tune_zones(
    path: Path,
    candidates: Sequence[Candidate],
    text: Text,
    budget: float,
    max_density: float,
    *,
    n_threads: int | None = None,
) -> ZoneTuning:
    """Choose a dead zone for every candidate.

    Every projection takes the threshold with the largest saving - loss / trade-off, and one trade-off for all
    goes down to where perplexity is within the budget: from above, since columns are not quantized as rows
    are, which alone moves the perplexity of a few sparse projections either way. Losses are local errors
    times what the kind of projection costs, which one measurement a kind tells.

    Args:
        path: a GGUF in which every candidate has columns and zones; its zones and its share are overwritten.
        candidates: at least one.
        text: that decides, decoded token by token.
        budget: perplexity may rise by this share; > 0.
        max_density: as it will be stored.
        n_threads: None: as `default_threads`.

    Raises:
        SparseError: no dead zones keep the budget.
    """
    bench = _ZoneTrials(path, candidates, text, max_density, n_threads)
    kinds = [name for name in SPARSE_PROJECTIONS if any(each.key[1] == name for each in candidates)]
    with progress_bar("tuning dead zones", None) as advance:
        losses = {}
        for kind in kinds:
            losses[kind] = bench.loss_of(kind)
            advance(1)
        set_number(path, MAX_DENSITY_KEY, max_density)
        trials = _search(bench, losses, budget, advance)
    within = [trial for trial in trials if trial.ratio <= 1 + budget and any(trial.choice)]
    if not within:
        least = min(trials, key=lambda trial: trial.ratio)
        raise SparseError(
            f"no dead zones keep a budget of {budget:g}",
            path=text.name,
            found=f"perplexity {least.ratio:.5f} times that of the dense product",
            expected=f"at most {1 + budget:g} times, with some projection sparse",
            hint="allow more, or a larger --max-density",
        )
    chosen = max(within, key=lambda trial: trial.saved)
    bench.set(chosen.choice)
    return ZoneTuning(math.exp(bench.dense.mean()), losses, tuple(trials), chosen)


class _Step(NamedTuple):
    """A trade-off and the trial of its choice, which other trade-offs may share."""

    k: float
    trial: Trial


def _search(bench: _ZoneTrials, losses: Mapping[str, float], budget: float, advance: Advance) -> list[Trial]:
    weights = np.array([losses[each.key[1]] for each in bench.candidates])
    trials: dict[tuple[int, ...], Trial] = {}

    def measure(trade: float) -> _Step:
        choice = bench.choose(weights, trade)
        if choice not in trials:
            trials[choice] = bench.measure(choice, trade)
            advance(1)
        return _Step(trade, trials[choice])

    largest = LARGEST_TRADE * math.log1p(budget)
    trades = [largest / STEP**step for step in range(MOST_STEPS + 1)]
    search(measure, trades, lambda step: step.trial.ratio <= 1 + budget, HALVINGS, in_a_row=1)
    return sorted(trials.values(), key=lambda trial: trial.trade)


class _ZoneTrials:
    """A GGUF whose zones take any choice, and the text to try them on."""

    def __init__(
        self,
        path: Path,
        candidates: Sequence[Candidate],
        text: Text,
        max_density: float,
        n_threads: int | None,
    ) -> None:
        self.candidates = candidates
        self._path = path
        self._text = text
        self._max_density = max_density
        self._n_threads = n_threads
        self._bytes = np.array([each.nbytes for each in candidates], np.float64)
        self._zones = {tensor.name: tensor for tensor in read_header(path).tensors}
        with Model(path, sparse=False) as model:
            self.dense = token_losses(model, text.tokens, n_batch=1, n_threads=n_threads)
        set_number(path, MAX_DENSITY_KEY, 1)  # columns everywhere
        self.set([0] * len(candidates))
        with Model(path) as model:
            self._reference = self._predict(model)

    def choose(self, weights: Floats, trade: float) -> tuple[int, ...]:
        """The candidates' choices at a trade-off."""
        curves = [each.curve for each in self.candidates]
        gains = self._bytes / self._bytes.sum()
        return tuple(choose(curves, gains, weights, trade, self._max_density).tolist())

    def set(self, choice: Sequence[int]) -> None:
        """Write zones."""
        for candidate, place in zip(self.candidates, choice, strict=True):
            values = zones(candidate.curve.taus[place], candidate.norms)
            stored = tensor_bytes(self._zones[zones_name(*candidate.key)], writable=True)
            stored[:] = values.view(np.uint8)

    def measure(self, choice: tuple[int, ...], trade: float) -> Trial:
        """Perplexity with a choice."""
        self.set(choice)
        with Model(self._path) as model, count_products() as counts:
            losses = token_losses(model, self._text.tokens, n_batch=1, n_threads=self._n_threads)
            counted = counts()
        silent = [each.curve.silent[place] for each, place in zip(self.candidates, choice, strict=True)]
        saved = float((self._bytes * silent).sum() / self._bytes.sum())
        return Trial(trade, choice, math.exp(losses.mean() - self.dense.mean()), saved, counted)

    def loss_of(self, kind: str) -> float:
        """Nats a token for each unit of local error, in every layer's projection of this kind together."""
        choice = [PROBE_PLACE if each.key[1] == kind else 0 for each in self.candidates]
        self.set(choice)
        with Model(self._path) as model:
            found = kl_divergence(self._reference, self._predict(model)).mean()
        errors = [each.curve.errors[at] for each, at in zip(self.candidates, choice, strict=True)]
        return max(float(found), LEAST_LOSS) / max(sum(errors), LEAST_LOSS)

    def _predict(self, model: Model) -> NDArray[np.floating]:
        tokens = self._text.tokens[:PROBE_TOKENS]
        found = predictions(model, tokens, n_batch=1, n_threads=self._n_threads)
        return np.concatenate([rows for rows, _ in found])
