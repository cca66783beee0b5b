"""Perplexity and spikes over k: the report's table, of any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.arch.spike_plan import require_k
from sb_edge.evaluate.perplexity import perplexity
from sb_edge.evaluate.spike_stats import MAX_TOKENS, SpikeStats, engine_k, total
from sb_edge.gguf.reader import read_header
from sb_edge.runtime.session import Model
from sb_edge.runtime.spike_counters import count_spikes


@dataclass(frozen=True)
class ReportedPoint:
    """A row of the report's table for the 7B: mean of seven benchmarks, 0 to 1, and shares."""

    average: float
    sparsity: float
    share_at_most_7: float


REPORTED_WITHOUT = 0.6998
"""The mean of the seven benchmarks in BF16, without spikes."""

REPORTED_SWEEP = {
    2.0: ReportedPoint(0.6735, 0.730, 0.989),
    2.5: ReportedPoint(0.6807, 0.709, 0.976),
    3.0: ReportedPoint(0.6875, 0.692, 0.951),
    3.5: ReportedPoint(0.6898, 0.677, 0.916),
    4.0: ReportedPoint(0.6940, 0.664, 0.877),
}
"""arXiv 2509.05276, SpikingBrain-7B. At k = 3 its text gives 94.1 % for the last column."""

DEFAULT_KS = tuple(REPORTED_SWEEP)


@dataclass(frozen=True)
class SweepPoint:
    """One k for every coded input; None: as the file has them."""

    k: float | None
    perplexity: float
    stats: SpikeStats


@dataclass(frozen=True)
class Sweep:
    """Perplexity and spikes of one model on one text.

    Attributes:
        model: the file's name without its folder.
        text: the text's file name without its folder, or "held-out".
        tokens: of the text that were predicted.
        without: perplexity without any spikes.
        points: in the order asked for; of a file with spikes, what it stores comes first.
    """

    model: str
    text: str
    tokens: int
    without: float
    points: tuple[SweepPoint, ...]

    def ratio(self, point: SweepPoint) -> float:
        """Perplexity over that without spikes."""
        return point.perplexity / self.without

    def document(self) -> dict[str, Any]:
        """For JSON; the fields are described in docs/spikes.md."""
        return {
            "model": self.model,
            "text": self.text,
            "tokens": self.tokens,
            "perplexity_without_spikes": self.without,
            "points": [
                {
                    "k": point.k,
                    "perplexity": point.perplexity,
                    "ratio": self.ratio(point),
                    "window_sparsity": point.stats.window_sparsity,
                    "share_at_most_7": point.stats.share_at_most_7,
                    "silent_share": point.stats.silent_share,
                    "spikes_per_channel": point.stats.spikes_per_channel,
                }
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
    """Evaluate a text once without spikes, once as the file has them if it does, and once with each k.

    Args:
        path: the GGUF.
        text: at least two tokens.
        name: of the text, for the result.
        ks: positive numbers.
        max_tokens: of the text, in one context.
        n_threads: None: as `default_threads`.
        on_point: told each point as it is measured.

    Raises:
        SpikeError: a k that is not a positive number.
        GgufError: not a SpikingBrain GGUF.
        InferenceError: no vocabulary, or the text is too short.
    """
    header = read_header(path)
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
