"""Statistics of a model's spike counts from the engine's counters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch import ARCH
from sb_edge.arch.spike_plan import DEFAULT_K, PROJECTIONS, SpikePlan, require_k
from sb_edge.evaluate.energy import Energy, estimate_energy
from sb_edge.evaluate.perplexity import evaluate
from sb_edge.gguf.reader import GgufHeader
from sb_edge.runtime.session import Model
from sb_edge.runtime.spike_counters import SiteCounts, count_spikes
from sb_edge.util.errors import GgufError, InferenceError, SpikeError
from sb_edge.util.output import json_fields, to_json

MAX_TOKENS = 1024


@dataclass(frozen=True)
class ReportedFigures:
    """Figures of the report for the 7B at k = 3 (arXiv 2509.05276, section 3.3)."""

    share_at_most_7: float = 0.941
    share_over_16: float = 0.01
    silent_share: float = 0.184
    bitwise: float = 1.13
    window_sparsity: float = 0.6915


REPORTED = ReportedFigures()


CODINGS: dict[str, Callable[[SiteCounts], tuple[int, int]]] = {
    "unary": lambda site: (site.unary_spikes, site.unary_steps),
    "bitwise": lambda site: (site.bit_spikes, site.bit_steps),
    "twos_complement": lambda site: (site.twos_complement_spikes, site.twos_complement_steps),
}
"""Spikes and steps of an input by coding: binary and ternary, plain and bidirectional bitwise, two's
complement."""


@dataclass(frozen=True)
class SpikeStats:
    """Spike statistics of one or several coded inputs. Shares refer to entries (one channel, one token).

    Attributes:
        projections: projections that use the inputs.
        sites: the engine's counts of each coded input, at least one.
    """

    projections: tuple[str, ...]
    sites: tuple[SiteCounts, ...]

    @property
    def layer(self) -> int | None:
        """The layer; None for inputs of several layers."""
        layers = {site.layer for site in self.sites}
        return layers.pop() if len(layers) == 1 else None

    @property
    def k(self) -> float | None:
        """k; None if the inputs have different k."""
        values = {site.k for site in self.sites}
        return values.pop() if len(values) == 1 else None

    @property
    def entries(self) -> int:
        """Number of coded values: channels times tokens, over all inputs."""
        return self._sum(lambda site: site.channels * site.tokens)

    @property
    def rows(self) -> int:
        """Number of coded vectors: tokens, over all inputs."""
        return self._sum(lambda site: site.tokens)

    @property
    def histogram(self) -> NDArray[np.int64]:
        """Number of entries by |s|; the last bin includes all larger counts."""
        return np.sum([site.histogram for site in self.sites], axis=0, dtype=np.int64)

    @property
    def share_at_most_7(self) -> float:
        """Share of entries with |s| <= 7, which fit in three bits."""
        return float(self.histogram[:8].sum()) / self.entries

    @property
    def share_over_16(self) -> float:
        """Share of entries with |s| > 16."""
        return 1 - float(self.histogram[:17].sum()) / self.entries

    @property
    def silent_share(self) -> float:
        """Share of entries with s = 0."""
        return float(self.histogram[0]) / self.entries

    @property
    def negative_share(self) -> float:
        """Share of entries with s < 0."""
        return self._sum(lambda site: site.negative) / self.entries

    @property
    def burst_share(self) -> float:
        """Share of entries with |s| > 127, which do not fit in int8."""
        return self._sum(lambda site: site.bursts) / self.entries

    @property
    def largest(self) -> int:
        """Largest |s|."""
        return max(site.largest for site in self.sites)

    @property
    def mean_threshold(self) -> float:
        """Mean threshold Vth over the coded vectors."""
        return sum(site.threshold_sum for site in self.sites) / self.rows

    @property
    def spikes_per_channel(self) -> dict[str, float]:
        """Mean spikes per entry, by the keys of `CODINGS`."""
        return {name: sum(of(site)[0] for site in self.sites) / self.entries for name, of in CODINGS.items()}

    @property
    def steps_per_token(self) -> dict[str, float]:
        """Mean virtual time steps T per token, set by its largest count, by the keys of `CODINGS`."""
        return {name: sum(of(site)[1] for site in self.sites) / self.rows for name, of in CODINGS.items()}

    @property
    def slot_sparsity(self) -> dict[str, float]:
        """Share of empty slots if all channels of a token take its T steps, by the keys of `CODINGS`."""
        found = {}
        for name, of in CODINGS.items():
            slots = sum(of(site)[1] * site.channels for site in self.sites)
            found[name] = 1 - sum(of(site)[0] for site in self.sites) / slots if slots else 1.0
        return found

    @property
    def window_sparsity(self) -> float:
        """Share of empty slots in windows of three steps, bitwise coding: the report's sparsity.

        A count of more than three bits takes several windows; a silent channel takes one.
        """
        return 1 - self._sum(lambda site: site.bit_spikes) / self._sum(lambda site: site.window_slots)

    def _sum(self, value: Callable[[SiteCounts], int]) -> int:
        return sum(value(site) for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """The fields that docs/spikes.md describes."""
        return {
            **json_fields(self, "layer", "projections", "k"),
            "inputs": len(self.sites),
            **json_fields(
                self, "entries", "share_at_most_7", "share_over_16", "silent_share", "negative_share",
                "burst_share", "largest", "mean_threshold", "spikes_per_channel", "steps_per_token",
                "slot_sparsity", "window_sparsity",
            ),
            "histogram": np.trim_zeros(self.histogram, "b").tolist(),
        }  # fmt: skip


@dataclass(frozen=True)
class SpikeReport:
    """Spike statistics of a model on a text.

    Attributes:
        model: file name of the model.
        text: file name of the text, or "held-out".
        tokens: number of evaluated tokens.
        plan: spike plan in effect.
        sites: counts of every coded input, by layer.
        energy: energy estimate for one decoded token.
    """

    model: str
    text: str
    tokens: int
    plan: SpikePlan
    sites: tuple[SiteCounts, ...]
    energy: Energy

    def to_json(self) -> dict[str, Any]:
        """The fields that docs/spikes.md describes."""
        return {
            **json_fields(self, "model", "text", "tokens"),
            **json_fields(self.plan, "query_k", "kv_rounding"),
            "total": to_json(total(self.sites)),
            "projections": to_json(by_projection(self.sites)),
            "layers": to_json(by_site(self.sites)),
            "energy": to_json(self.energy),
        }


def total(sites: Sequence[SiteCounts]) -> SpikeStats:
    """Statistics of all inputs; an input shared by several projections is counted once."""
    return SpikeStats(_in_order({name for site in sites for name in site.projections}), tuple(sites))


def of_site(site: SiteCounts) -> SpikeStats:
    """Statistics of one coded input."""
    return SpikeStats(site.projections, (site,))


def by_site(sites: Sequence[SiteCounts]) -> list[SpikeStats]:
    """Statistics of each coded input."""
    return [of_site(site) for site in sites]


def by_projection(sites: Sequence[SiteCounts]) -> list[SpikeStats]:
    """Statistics of each projection over all layers; projections with the same inputs are one group."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in total(sites).projections:
        members = tuple(index for index, site in enumerate(sites) if name in site.projections)
        groups.setdefault(members, []).append(name)
    return [
        SpikeStats(tuple(names), tuple(sites[index] for index in members))
        for members, names in groups.items()
    ]


def engine_k(header: GgufHeader, spike_k: float | None) -> float | None:
    """The k for loading a model with spikes.

    Args:
        header: header of the model.
        spike_k: requested k; None: the k stored in the file, else `DEFAULT_K`.

    Returns:
        Argument for `Model(spikes=...)`; None: the k stored in the file.

    Raises:
        SpikeError: `spike_k` is not a positive number.
        GgufError: another architecture, or invalid spike keys.
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
    """Evaluate the first `max_tokens` tokens of a text in one context and count spikes.

    Args:
        model: model loaded with spikes.
        text: text of at least one token.
        name: name of the text, for the report.
        max_tokens: at least 1.
        n_threads: None: `default_threads`.

    Raises:
        SpikeError: the model was loaded without spikes.
        InferenceError: no vocabulary, an empty text, or NaN or infinity in the model.
    """
    plan = model.spike_plan
    if plan is None:
        raise SpikeError("has no spikes to count", path=model.path, hint="set k with --spike-k")
    tokens = model.tokenize(text)[:max_tokens]
    with count_spikes(model) as counters:
        # All logits: without them the engine skips the part of the last layer after attention.
        for _ in evaluate(model, tokens, n_threads=n_threads):
            pass
        sites = tuple(counters.sites())
    broken = next((site for site in sites if not math.isfinite(site.threshold_sum)), None)
    if broken is not None:
        raise InferenceError(
            "the model computes NaN or infinity",
            path=model.path,
            item=f"input of {broken.projections[0]}, layer {broken.layer}",
        )
    return SpikeReport(
        Path(model.path).name, name, len(tokens), plan, sites, estimate_energy(model.header, sites)
    )


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Projections in the order of a layer; other names ("synthetic") last."""
    known = [name for name in PROJECTIONS if name in names]
    return (*known, *sorted(names - set(known)))
