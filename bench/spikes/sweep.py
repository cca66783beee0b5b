"""Perplexity and spike statistics over k, as in the report's table, for any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.arch.model_check import read_model
from sb_edge.arch.spike_plan import require_k
from sb_edge.evaluate.perplexity import perplexity
from sb_edge.evaluate.spike_stats import MAX_TOKENS, SpikeStats, engine_k, total
from sb_edge.runtime.session import Model
from sb_edge.runtime.spike_counters import count_spikes
from sb_edge.util.output import json_fields


@dataclass(frozen=True)
class ReportedPoint:
    """One row of the report's table for the 7B: mean of seven benchmarks, 0 to 1, and shares."""

    average: float
    sparsity: float
    share_at_most_7: float


REPORTED_WITHOUT = 0.6998
"""Mean of the seven benchmarks in BF16, without spikes."""

REPORTED_SWEEP = {
    2.0: ReportedPoint(0.6735, 0.730, 0.989),
    2.5: ReportedPoint(0.6807, 0.709, 0.976),
    3.0: ReportedPoint(0.6875, 0.692, 0.951),
    3.5: ReportedPoint(0.6898, 0.677, 0.916),
    4.0: ReportedPoint(0.6940, 0.664, 0.877),
}
"""SpikingBrain-7B (arXiv 2509.05276). For k = 3 its text gives 94.1 % in the last column."""

DEFAULT_KS = tuple(REPORTED_SWEEP)


@dataclass(frozen=True)
class SweepPoint:
    """Results with one k for every coded input; `k` None: the k stored in the file."""

    k: float | None
    perplexity: float
    stats: SpikeStats


@dataclass(frozen=True)
class Sweep:
    """Perplexity and spikes of one model on one text.

    Attributes:
        model: file name of the model.
        text: file name of the text, or "held-out".
        tokens: number of predicted tokens.
        without: perplexity without spikes.
        points: in the requested order; the k stored in the file comes first.
    """

    model: str
    text: str
    tokens: int
    without: float
    points: tuple[SweepPoint, ...]

    def ratio(self, point: SweepPoint) -> float:
        """Perplexity of a point over that without spikes."""
        return point.perplexity / self.without

    def to_json(self) -> dict[str, Any]:
        """The fields that docs/spikes.md describes."""
        statistics = ("window_sparsity", "share_at_most_7", "silent_share", "spikes_per_channel")
        return {
            **json_fields(self, "model", "text", "tokens"),
            "perplexity_without_spikes": self.without,
            "points": [
                json_fields(point, "k", "perplexity")
                | {"ratio": self.ratio(point)}
                | json_fields(point.stats, *statistics)
                for point in self.points
            ],
        }


def sweep_k(
    path: Path,
    text: str,
    *,
    name: str,
    ks: Sequence[float] = DEFAULT_KS,
    max_tokens: int = MAX_TOKENS,
    n_threads: int | None = None,
    on_point: Callable[[SweepPoint], None] | None = None,
) -> Sweep:
    """Evaluate a text without spikes, with the k stored in the file if any, and with each k.

    Args:
        path: the GGUF.
        text: text of at least two tokens.
        name: name of the text.
        ks: positive numbers.
        max_tokens: maximum number of tokens, in one context.
        n_threads: None: `default_threads`.
        on_point: called with each measured point.

    Raises:
        SpikeError: a k that is not a positive number.
        GgufError: not a SpikingBrain GGUF.
        InferenceError: no vocabulary, or the text is too short.
    """
    header = read_model(path)
    for k in ks:
        require_k(k, "--k")
    stored = [None] if engine_k(header, None) is None else []
    with Model(path, header=header, spikes=0) as model:
        without = perplexity(model, text, n_threads=n_threads, max_tokens=max_tokens)
    points = []
    for setting in [*stored, *ks]:
        with Model(path, header=header, spikes=setting) as model, count_spikes(model) as counters:
            found = perplexity(model, text, n_threads=n_threads, max_tokens=max_tokens)
            points.append(SweepPoint(setting, found.value, total(counters.sites())))
        if on_point is not None:
            on_point(points[-1])
    return Sweep(path.name, name, without.tokens, without.value, tuple(points))
