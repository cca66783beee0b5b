"""Tuning: each coded input's own k, the fewest spikes within a perplexity budget. See docs/tuning-k.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch.model_spikes import check_plan
from sb_edge.arch.spike_plan import DEFAULT_K, CodedInput, SpikePlan, require_positive
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.evaluate.energy import estimate_energy
from sb_edge.evaluate.perplexity import predictions, token_losses
from sb_edge.evaluate.spike_stats import total
from sb_edge.gguf.reader import GgufHeader, read_header
from sb_edge.quant.quantize import COPY, quantize
from sb_edge.quant.spikes.allocation import allocate, interpolate_costs, predicted_loss, saving
from sb_edge.quant.tuning import PROBE_TOKENS, Text, search
from sb_edge.runtime.session import Model
from sb_edge.runtime.spike_counters import count_spikes
from sb_edge.util.errors import SpikeError
from sb_edge.util.files import atomic_output
from sb_edge.util.logits import kl_divergence
from sb_edge.util.output import json_fields, to_json
from sb_edge.util.progress import Advance, progress_bar

Floats = NDArray[np.float64]

DIVERGENCE_TOKENS = 512
"""Of each text, for the divergence of a choice of k; the vocabulary's probabilities after each are held."""

PROBE_K = 1.0
"""k of the input whose sensitivity is measured: its loss stands out. Nothing coarser is chosen."""

FINE_K = 1000.0
"""k of the other inputs meanwhile. Uncoded, quantized weights would be multiplied with activations rounded to
INT8 in blocks, and any change, however small, would come out of these roundings as large as a loss."""

COST_KS = tuple(2.0 ** (step / 2) for step in range(15))
GRID = np.geomspace(1, 128, 113)
"""Values that an input's k can have: sixteen an octave, as fine as a count of bits can tell apart."""

CURVE_KS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
HALVINGS = 4

LEAST_DIVERGENCE = 1e-9
"""Smaller ones are float32's rounding, which may even be negative."""

Kind = Literal["single", "tuned"]


@dataclass(frozen=True)
class Figures:
    """One choice of k on one text.

    Attributes:
        perplexity: Perplexity of the text.
        ratio: over that without spikes.
        ratio_error: standard error of `ratio`, from the tokens' differences.
        divergence: KL from the predictions with the finest coding, nats a token, over `DIVERGENCE_TOKENS`.
        spikes_per_channel: bitwise coding.
        additions_per_mac: the same, each channel weighted with the outputs that it feeds.
        window_sparsity: share of empty slots in windows of three steps.
    """

    perplexity: float
    ratio: float
    ratio_error: float
    divergence: float
    spikes_per_channel: float
    additions_per_mac: float
    window_sparsity: float


@dataclass(frozen=True)
class TunedPoint:
    """One choice of k for every input.

    Attributes:
        kind: "single": `k` at every input; "tuned": the cheapest choice with the loss predicted for that.
        k: see `kind`.
        ks: k of each input, in order.
        tuning: on the text that decides.
        held_out: on the other one.
    """

    kind: Kind
    k: float
    ks: tuple[float, ...]
    tuning: Figures
    held_out: Figures

    @property
    def ratio(self) -> float:
        """What the budget limits: perplexity over that without spikes, on the text that decides."""
        return self.tuning.ratio


@dataclass(frozen=True)
class Tuning:
    """Measurements and choice.

    Attributes:
        budget: perplexity may rise by this share.
        text, held_out: the texts' names.
        tokens, held_out_tokens: predicted.
        without, held_out_without: perplexities without spikes.
        sites: All coded inputs, by layer.
        sensitivities: divergence that each input alone adds at k = 1, nats a token.
        points: both curves, by kind and k.
        single: the least k within the budget.
        tuned: the least one within the budget that diverges no more than `single`, or else as `single`.
        plan: Stored plan: the cheaper of the two.
    """

    budget: float
    text: str
    held_out: str
    tokens: int
    held_out_tokens: int
    without: float
    held_out_without: float
    sites: tuple[CodedInput, ...]
    sensitivities: tuple[float, ...]
    points: tuple[TunedPoint, ...]
    single: TunedPoint
    tuned: TunedPoint
    plan: SpikePlan

    @property
    def chosen(self) -> TunedPoint:
        """The cheaper one."""
        return _cheaper(self.tuned, self.single)

    @property
    def savings(self) -> tuple[float, float]:
        """Share of additions that tuning saves at the divergence of a single k, the mean over the curves.

        On the text that decided, and on the other one. Unlike the chosen points it hardly depends on luck.
        """

        def saved(figures: Callable[[TunedPoint], Figures]) -> float:
            curves = [
                np.array(
                    [
                        (figures(point).additions_per_mac, figures(point).divergence)
                        for point in self.points
                        if point.kind == kind
                    ]
                )
                for kind in ("single", "tuned")
            ]
            return saving(*curves)

        return saved(lambda point: point.tuning), saved(lambda point: point.held_out)

    def to_json(self) -> dict[str, Any]:
        """For JSON; the fields are described in docs/tuning-k.md."""
        return {
            **json_fields(self, "budget", "text", "tokens"),
            "perplexity_without_spikes": self.without,
            **json_fields(self, "held_out", "held_out_tokens"),
            "held_out_perplexity_without_spikes": self.held_out_without,
            "stored": self.chosen.kind,
            "savings": dict(zip(("tuning", "held_out"), self.savings, strict=True)),
            **json_fields(self, "single", "tuned"),
            "sites": [
                json_fields(site) | {"sensitivity": sensitivity}
                for site, sensitivity in zip(self.sites, self.sensitivities, strict=True)
            ],
            "curve": to_json(self.points),
        }


def require_budget(budget: float) -> None:
    """As `require_positive`, for a budget."""
    require_positive(budget, "budget", "0.02 lets perplexity rise by 2 %")


def start_k(header: GgufHeader) -> float:
    """The k to code a file with before it is tuned: its queries keep theirs, all else is replaced."""
    plan = check_plan(header)
    return plan.query_k if plan and plan.query_k else DEFAULT_K


def tune_copy(
    source: Path,
    target: Path,
    text: Text,
    held_out: Text,
    budget: float,
    *,
    projections: Sequence[str] | None = None,
    n_threads: int | None = None,
) -> Tuning:
    """Copy a GGUF with a tuned k for each coded input; nothing is written if the budget cannot be kept.

    Args:
        source: GGUF, with or without spikes.
        target: File to write; may be `source`.
        text, held_out, budget, n_threads: As `tune_file`.
        projections: Projections to code; None: those of the file, or all.

    Raises:
        SpikeError: as `tune_file`.
        OutputError: `target` cannot be written.
    """
    tuning: Tuning = quantize(
        source,
        target,
        COPY,
        spike_k=start_k(read_header(source)),
        spike_projections=projections,
        finish=lambda path: tune_file(path, text, held_out, budget, n_threads=n_threads),
    )
    return tuning


def tune_file(
    path: Path, text: Text, held_out: Text, budget: float, *, n_threads: int | None = None
) -> Tuning:
    """Tune a GGUF that spikes, and store the choice in it; unchanged if there is none.

    Args:
        path: a GGUF whose plan names the projections; its k does not matter, its query coding and KV rounding
            stay.
        text: the one that decides.
        held_out: another one, only measured.
        budget: perplexity of `text` may rise by this share over that without spikes; > 0.
        n_threads: None: as `default_threads`.

    Raises:
        SpikeError: no such budget, no spikes, or no k keeps the budget.
    """
    tuning = tune(path, text, held_out, budget, n_threads=n_threads)
    with atomic_output(path) as partial:
        with_spike_plan(path, partial, tuning.plan)
        with Model(path, spikes=0) as plain, Model(partial) as stored:
            without = token_losses(plain, text.tokens, n_threads=n_threads)
            ratio = math.exp(token_losses(stored, text.tokens, n_threads=n_threads).mean() - without.mean())
        if ratio > 1 + budget:
            raise _over_budget("is broken by the file with the choice in it", ratio, without, budget)
    return tuning


def tune(path: Path, text: Text, held_out: Text, budget: float, *, n_threads: int | None = None) -> Tuning:
    """Choose, without storing it.

    Args and errors: as `tune_file`.
    """
    require_budget(budget)
    with Model(path, spikes=0) as plain:
        without = {each: token_losses(plain, each.tokens, n_threads=n_threads) for each in (text, held_out)}
    with Model(path) as model:
        plan = model.spike_plan
        if plan is None:
            raise SpikeError("has no spikes to tune", path=path, hint="give it a k first")
        sites = replace(plan, layer_k=None).coded_inputs(model.recurrent_layers)  # tuned to one k each
        bench = _KTrials(model, sites, (text, held_out), without, n_threads)
        sensitivities, costs = bench.probe(text)
        grid_costs = interpolate_costs(np.array(COST_KS), costs, GRID)

        def tuned_ks(k: float) -> Floats:
            limit = predicted_loss(sensitivities, np.full(len(sensitivities), k))
            return allocate(sensitivities, grid_costs, GRID, limit)

        with progress_bar("searching k", None) as advance:
            points, single = bench.curve(
                "single", lambda k: np.full(len(sites), k), budget, math.inf, advance
            )
            if single is None:
                message = f"is broken even by k = {points[-1].k:g}"
                raise _over_budget(message, points[-1].ratio, without[text], budget)
            more, tuned = bench.curve("tuned", tuned_ks, budget, single.tuning.divergence, advance)
            tuned = tuned or replace(single, kind="tuned")
    return Tuning(
        budget=budget,
        text=text.name,
        held_out=held_out.name,
        tokens=len(text.tokens) - 1,
        held_out_tokens=len(held_out.tokens) - 1,
        without=float(np.exp(without[text].mean())),
        held_out_without=float(np.exp(without[held_out].mean())),
        sites=sites,
        sensitivities=tuple(sensitivities.tolist()),
        points=(*points, *more),
        single=single,
        tuned=tuned,
        plan=plan_with(plan, sites, _cheaper(tuned, single), len(model.recurrent_layers)),
    )


def plan_with(plan: SpikePlan, sites: Sequence[CodedInput], point: TunedPoint, n_layer: int) -> SpikePlan:
    """A plan with each input's own k."""
    rows = [dict.fromkeys(plan.projections, 0.0) for _ in range(n_layer)]
    for site, k in zip(sites, point.ks, strict=True):
        rows[site.layer].update(dict.fromkeys(site.projections, k))
    return replace(plan, k=point.k, layer_k=tuple(tuple(row.values()) for row in rows))


class _KTrials:
    """A model whose inputs take any k, and texts to try them on.

    Args:
        model: Model that spikes at these inputs.
        texts: the one that decides and the other one.
        without: For each text, the tokens' negative log-likelihoods without spikes.
    """

    def __init__(
        self,
        model: Model,
        sites: tuple[CodedInput, ...],
        texts: tuple[Text, Text],
        without: dict[Text, Floats],
        n_threads: int | None,
    ) -> None:
        self.sites = sites
        self._model = model
        self._texts = texts
        self._without = without
        self._n_threads = n_threads
        self._fine = np.full(len(sites), FINE_K)
        self._set(self._fine)
        self._references = {}
        for text in texts:
            found = predictions(model, text.tokens[:DIVERGENCE_TOKENS], n_threads=n_threads)
            self._references[text] = np.concatenate([rows for rows, _ in found])

    def probe(self, text: Text) -> tuple[Floats, Floats]:
        """Each input's sensitivity, nats at k = 1, [n_sites], and cost at each of `COST_KS`, [n, n_sites]."""
        tokens = text.tokens[:PROBE_TOKENS]
        sensitivities = []
        with progress_bar("probing inputs", len(self.sites) + len(COST_KS)) as advance:
            for index in range(len(self.sites)):
                ks = self._fine.copy()
                ks[index] = PROBE_K
                self._set(ks)
                _, divergence = self._evaluate(text, tokens)
                sensitivities.append(max(float(divergence.mean()), 0.0) * PROBE_K**2)
                advance(1)
            costs = []
            for k in COST_KS:
                costs.append(self._costs(text, tokens, k))
                advance(1)
        return np.array(sensitivities), np.array(costs)

    def curve(
        self,
        kind: Kind,
        choose: Callable[[float], Floats],
        budget: float,
        most_divergence: float,
        advance: Advance,
    ) -> tuple[list[TunedPoint], TunedPoint | None]:
        """Measurements over k, and the least one within the budget that diverges no more than allowed."""

        def measure(k: float) -> TunedPoint:
            ks = choose(k)
            self._set(ks)
            tuning, held_out = (self._figures(text) for text in self._texts)
            advance(1)
            return TunedPoint(kind, k, tuple(ks.tolist()), tuning, held_out)

        def accept(point: TunedPoint) -> bool:
            return point.ratio <= 1 + budget and point.tuning.divergence <= most_divergence

        return search(measure, CURVE_KS, accept, HALVINGS)

    def _figures(self, text: Text) -> Figures:
        with count_spikes(self._model) as counters:
            nll, divergence = self._evaluate(text, text.tokens)
            sites = counters.sites()
        without = self._without[text]
        ratio = math.exp(nll.mean() - without.mean())
        stats = total(sites)
        return Figures(
            perplexity=math.exp(nll.mean()),
            ratio=ratio,
            ratio_error=ratio * float((nll - without).std()) / math.sqrt(len(nll)),
            divergence=max(float(divergence.mean()), LEAST_DIVERGENCE),
            spikes_per_channel=stats.spikes_per_channel["bitwise"],
            additions_per_mac=estimate_energy(self._model.header, sites).spikes_per_mac,
            window_sparsity=stats.window_sparsity,
        )

    def _costs(self, text: Text, tokens: Sequence[int], k: float) -> Floats:
        """Additions per token at every input, with one k for all."""
        self._set(np.full(len(self.sites), k))
        with count_spikes(self._model) as counters:
            self._evaluate(text, tokens)
            counted = {(site.layer, site.projections): site for site in counters.sites()}
        header = self._model.header
        return np.array(
            [estimate_energy(header, [counted[site.layer, site.projections]]).spikes for site in self.sites]
        )

    def _set(self, ks: Floats) -> None:
        for site, k in zip(self.sites, ks.tolist(), strict=True):
            for name in site.projections:
                self._model.set_spike_k(site.layer, name, k)

    def _evaluate(self, text: Text, tokens: Sequence[int]) -> tuple[Floats, Floats]:
        """Negative log-likelihoods [T - 1], and divergences from the finest coding [<= DIVERGENCE_TOKENS]."""
        reference = self._references[text]
        nll, divergence = [], []
        at = 0
        for rows, surprise in predictions(self._model, tokens, n_threads=self._n_threads):
            nll.append(surprise)
            finest = reference[at : at + len(rows)]
            if len(finest):
                divergence.append(kl_divergence(finest, rows[: len(finest)]))
            at += len(rows)
        return np.concatenate(nll), np.concatenate(divergence)


def _cheaper(tuned: TunedPoint, single: TunedPoint) -> TunedPoint:
    return min(tuned, single, key=lambda point: point.tuning.additions_per_mac)


def _over_budget(message: str, ratio: float, without: Floats, budget: float) -> SpikeError:
    plain = math.exp(without.mean())
    return SpikeError(
        message,
        item=f"a budget of {budget:g}",
        found=f"perplexity {plain * ratio:.4f}, {ratio:.5f} times the {plain:.4f} without spikes",
        expected=f"at most {1 + budget:g} times",
        hint="allow more, or give a longer text",
    )
