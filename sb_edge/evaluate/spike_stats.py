"""Statistics of a model's spike counts, from the engine's counters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch.config import ARCH
from sb_edge.arch.spike_plan import DEFAULT_K, PROJECTIONS, SpikePlan, require_k
from sb_edge.evaluate.energy import Energy, estimate_energy
from sb_edge.evaluate.perplexity import evaluate
from sb_edge.gguf.reader import GgufHeader
from sb_edge.runtime.session import Model
from sb_edge.runtime.spike_counters import SiteCounts, count_spikes
from sb_edge.util.errors import GgufError, InferenceError, SpikeError

MAX_TOKENS = 1024


@dataclass(frozen=True)
class ReportedFigures:
    """What the report gives for the 7B at k = 3 (arXiv 2509.05276, section 3.3)."""

    share_at_most_7: float = 0.941
    share_over_16: float = 0.01
    silent_share: float = 0.184
    bitwise: float = 1.13
    window_sparsity: float = 0.6915


REPORTED = ReportedFigures()


@dataclass(frozen=True)
class SpikeStats:
    """The counts of one or several coded inputs together. Shares are of entries: one channel, one token.

    Attributes:
        projections: what the inputs go into.
        sites: the engine's counts of each coded input, at least one.
    """

    projections: tuple[str, ...]
    sites: tuple[SiteCounts, ...]

    @property
    def layer(self) -> int | None:
        """The layer, None of several."""
        layers = {site.layer for site in self.sites}
        return layers.pop() if len(layers) == 1 else None

    @property
    def k(self) -> float | None:
        """k, None where the inputs differ in it."""
        values = {site.k for site in self.sites}
        return values.pop() if len(values) == 1 else None

    @property
    def entries(self) -> int:
        """Coded values: channels times tokens, over all inputs."""
        return sum(site.channels * site.tokens for site in self.sites)

    @property
    def rows(self) -> int:
        """Coded vectors: tokens, over all inputs."""
        return sum(site.tokens for site in self.sites)

    @property
    def histogram(self) -> NDArray[np.int64]:
        """Entries by |s|; the last bin holds that count and all larger ones."""
        return np.sum([site.histogram for site in self.sites], axis=0, dtype=np.int64)

    @property
    def share_at_most_7(self) -> float:
        """Entries with |s| <= 7: three bits carry them."""
        return float(self.histogram[:8].sum()) / self.entries

    @property
    def share_over_16(self) -> float:
        """Entries with |s| > 16."""
        return 1 - float(self.histogram[:17].sum()) / self.entries

    @property
    def silent_share(self) -> float:
        """Entries with s = 0."""
        return float(self.histogram[0]) / self.entries

    @property
    def negative_share(self) -> float:
        """Entries with s < 0."""
        return sum(site.negative for site in self.sites) / self.entries

    @property
    def burst_share(self) -> float:
        """Entries with |s| > 127, which int8 does not hold."""
        return sum(site.bursts for site in self.sites) / self.entries

    @property
    def largest(self) -> int:
        """The largest |s|."""
        return max(site.largest for site in self.sites)

    @property
    def mean_threshold(self) -> float:
        """Vth, the mean over the coded vectors."""
        return sum(site.threshold_sum for site in self.sites) / self.rows

    @property
    def spikes_per_channel(self) -> dict[str, float]:
        """Mean spikes of an entry: `unary` (binary and ternary coding), `bitwise` (plain and bidirectional),
        `twos_complement`."""
        return {name: total / self.entries for name, total in self._spikes().items()}

    @property
    def steps_per_token(self) -> dict[str, float]:
        """Mean virtual time steps T of a token, whose largest count decides it; by the same names."""
        return {name: total / self.rows for name, total in self._steps().items()}

    @property
    def slot_sparsity(self) -> dict[str, float]:
        """Share of empty slots when all channels of a token take its T steps; by the same names."""
        spikes = self._spikes()
        slots = {
            "unary": sum(site.unary_steps * site.channels for site in self.sites),
            "bitwise": sum(site.bit_steps * site.channels for site in self.sites),
            "twos_complement": sum(site.twos_complement_steps * site.channels for site in self.sites),
        }
        return {name: 1 - spikes[name] / slots[name] if slots[name] else 1.0 for name in slots}

    @property
    def window_sparsity(self) -> float:
        """Share of empty slots in windows of three steps, bitwise coding: the report's sparsity.

        A count of more than three bits takes further windows; a silent channel takes one.
        """
        return 1 - self._spikes()["bitwise"] / sum(site.window_slots for site in self.sites)

    def _spikes(self) -> dict[str, int]:
        return {
            "unary": sum(site.unary_spikes for site in self.sites),
            "bitwise": sum(site.bit_spikes for site in self.sites),
            "twos_complement": sum(site.twos_complement_spikes for site in self.sites),
        }

    def _steps(self) -> dict[str, int]:
        return {
            "unary": sum(site.unary_steps for site in self.sites),
            "bitwise": sum(site.bit_steps for site in self.sites),
            "twos_complement": sum(site.twos_complement_steps for site in self.sites),
        }

    def document(self) -> dict[str, Any]:
        """For JSON; the fields are described in docs/spikes.md."""
        return {
            "layer": self.layer,
            "projections": list(self.projections),
            "k": self.k,
            "inputs": len(self.sites),
            "entries": self.entries,
            "share_at_most_7": self.share_at_most_7,
            "share_over_16": self.share_over_16,
            "silent_share": self.silent_share,
            "negative_share": self.negative_share,
            "burst_share": self.burst_share,
            "largest": self.largest,
            "mean_threshold": self.mean_threshold,
            "spikes_per_channel": self.spikes_per_channel,
            "steps_per_token": self.steps_per_token,
            "slot_sparsity": self.slot_sparsity,
            "window_sparsity": self.window_sparsity,
            "histogram": np.trim_zeros(self.histogram, "b").tolist(),
        }


@dataclass(frozen=True)
class SpikeReport:
    """What a model's spikes were on a text.

    Attributes:
        model: the file's name without its folder.
        text: the text's file name without its folder, or "held-out".
        tokens: of the text that were evaluated.
        plan: the spiking in effect.
        sites: counts of every coded input, by layer.
    """

    model: str
    text: str
    tokens: int
    plan: SpikePlan
    sites: tuple[SiteCounts, ...]
    energy: Energy

    def document(self) -> dict[str, Any]:
        """For JSON; the fields are described in docs/spikes.md."""
        return {
            "model": self.model,
            "text": self.text,
            "tokens": self.tokens,
            "query_k": self.plan.query_k,
            "kv_rounding": self.plan.kv_rounding,
            "total": total(self.sites).document(),
            "projections": [stats.document() for stats in by_projection(self.sites)],
            "layers": [stats.document() for stats in by_site(self.sites)],
            "energy": self.energy.document(),
        }


def total(sites: Sequence[SiteCounts]) -> SpikeStats:
    """All inputs together; one that several projections share is counted once, as it is coded once."""
    return SpikeStats(_in_order({name for site in sites for name in site.projections}), tuple(sites))


def by_site(sites: Sequence[SiteCounts]) -> list[SpikeStats]:
    """One for each coded input."""
    return [SpikeStats(site.projections, (site,)) for site in sites]


def by_projection(sites: Sequence[SiteCounts]) -> list[SpikeStats]:
    """One for each projection over all layers; projections that share their input in every layer share it."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in total(sites).projections:
        members = tuple(index for index, site in enumerate(sites) if name in site.projections)
        groups.setdefault(members, []).append(name)
    return [
        SpikeStats(tuple(names), tuple(sites[index] for index in members))
        for members, names in groups.items()
    ]


def engine_k(header: GgufHeader, spike_k: float | None) -> float | None:
    """The k to load a model with, so that it has spikes to count.

    Args:
        header: the model's.
        spike_k: the user's wish; None: as the file says, or `DEFAULT_K` if it says nothing.

    Returns:
        For `Model(spikes=...)`: None means as the file says.

    Raises:
        SpikeError: the wish is not a positive number.
        GgufError: another architecture, or spike keys that make no plan.
    """
    path = header.files[0]
    if header.arch != ARCH:
        raise GgufError("has no spikes", path=path, item="architecture", found=header.arch, expected=ARCH)
    if spike_k is not None:
        require_k(spike_k, "--spike-k")
        return spike_k
    return None if SpikePlan.from_metadata(header.metadata, path) else DEFAULT_K


def measure(
    model: Model, text: str, *, name: str, max_tokens: int = MAX_TOKENS, n_threads: int | None = None
) -> SpikeReport:
    """Evaluate the first `max_tokens` tokens of a text in one context and count the spikes.

    Args:
        model: loaded with spikes.
        text: not empty.
        name: of the text, for the report.
        max_tokens: at least 1.
        n_threads: None: as `default_threads`.

    Raises:
        SpikeError: the model was loaded without spikes.
        InferenceError: no vocabulary, an empty text, or values that are not finite.
    """
    plan = model.spike_plan
    if plan is None:
        raise SpikeError("has no spikes to count", path=model.path, hint="give a k with --spike-k")
    tokens = model.tokenize(text)[:max_tokens]
    with count_spikes(model) as counters:
        # All logits: where none are wanted, the engine leaves out what follows the last layer's attention.
        for _ in evaluate(model, tokens, n_threads=n_threads):
            pass
        sites = tuple(counters.sites())
    broken = next((site for site in sites if not math.isfinite(site.threshold_sum)), None)
    if broken is not None:
        raise InferenceError(
            "the model computes values that are not finite",
            path=model.path,
            item=f"input of {broken.projections[0]}, layer {broken.layer}",
        )
    return SpikeReport(
        Path(model.path).name, name, len(tokens), plan, sites, estimate_energy(model.header, sites)
    )


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Projections as they come in a layer; names that are none ("synthetic") last."""
    known = [name for name in PROJECTIONS if name in names]
    return (*known, *sorted(names - set(known)))
