"""Tables of spike statistics for the terminal; each under 80 columns wide."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from sb_edge.bench.spikes.stats_plots import short_label
from sb_edge.bench.spikes.sweep import REPORTED_SWEEP, REPORTED_WITHOUT, Sweep, SweepPoint
from sb_edge.bench.spikes.theory import SyntheticCheck
from sb_edge.evaluate.energy import ASSUMPTIONS, DRAMS, Energy
from sb_edge.evaluate.spike_stats import REPORTED, SpikeReport, SpikeStats, by_projection, by_site, total
from sb_edge.util.output import format_bytes
from sb_edge.util.table import Table

NOTES = (
    "<=7, >16, silent, >127: shares of entries (one channel, one token). unary, bits, two's: spikes per "
    "entry in binary or ternary, plain or bidirectional bitwise, and two's complement coding. empty: slots "
    "without a spike in windows of three steps, bitwise; a count of more than three bits takes several "
    "windows. max: largest |s|. `all inputs` includes an input shared by several projections once."
)


def stats_table(report: SpikeReport, *, layers: bool = False) -> RenderableType:
    """Statistics by projection, in total and of the report's 7B, and the energy estimate.

    Args:
        report: the statistics.
        layers: also list every coded input.
    """
    headings = ("k", "<=7", ">16", "silent", "unary", "bits", "two's", "empty", ">127", "max")
    title = f"{report.model}: {report.tokens} tokens of {report.text}"
    table = Table("input of", *headings, title=title, notes=[NOTES])
    if layers:
        for stats in by_site(report.sites):
            table.add(f"{stats.layer} {stats.projections[0]}", *_cells(stats))
    for stats in by_projection(report.sites):
        table.add(short_label(stats.projections), *_cells(stats))
    table.add("all inputs", *_cells(total(report.sites)))
    table.add(
        "report, 7B", "3", f"{REPORTED.share_at_most_7:.1%}", f"~{REPORTED.share_over_16:.0%}",
        f"{REPORTED.silent_share:.1%}", "", f"{REPORTED.bitwise:.2f}", "", f"{REPORTED.window_sparsity:.2%}",
        dim=True,
    )  # fmt: skip
    return Group(table, Text(), energy_table(report.energy))


def energy_table(energy: Energy) -> RenderableType:
    """The report's estimate, the estimate with DRAM reads, and their assumptions."""
    compute = Table.of(
        (energy.fp16, energy.int8, energy.spiking),
        {
            "coded projections, compute alone": lambda method: method.name,
            "MACs": lambda _: f"{energy.coded_macs:,}",
            "pJ/MAC": lambda method: f"{method.coded_pj / energy.coded_macs:.4f}",
            "energy": lambda method: _joule(method.coded_pj),
            "over spiking": lambda method: f"{method.coded_pj / energy.spiking.coded_pj:.2f}x",
        },
        title="Energy per decoded token, an estimate like the report's, not a measurement",
    )
    low = DRAMS[1]
    whole = Table(
        "whole model", "weights", "compute", "DRAM", "total",
        *(dram.name.removeprefix("45 nm, ") for dram in DRAMS),
        title=f"All weights read once from DRAM at {low.pj_per_bit:.1f} pJ/bit; right: total over spiking",
    )  # fmt: skip
    for method in energy.methods:
        joules = map(_joule, (method.compute_pj, method.dram_pj(low), method.total_pj(low)))
        ratios = (f"{method.total_pj(dram) / energy.spiking.total_pj(dram):.3f}x" for dram in DRAMS)
        whole.add(method.name, format_bytes(method.weight_bytes), *joules, *ratios)
    return Group(
        compute,
        Text(),
        whole,
        Text("Assumptions", style="bold"),
        *(Text(f"- {line}", style="dim") for line in (*ASSUMPTIONS, *(dram.source for dram in DRAMS))),
    )


def synthetic_table(check: SyntheticCheck) -> Table:
    """Measured statistics beside their closed forms."""
    counts = check.counts
    return Table.of(
        check.comparisons,
        {
            "statistic": lambda one: one.name,
            "engine": lambda one: f"{one.measured:.5f}",
            "closed form": lambda one: f"{one.closed_form:.5f}",
            "difference": lambda one: f"{one.difference:.3%}",
        },
        title=f"{check.distribution}, k = {check.k:g}: {counts.tokens} rows of {counts.channels} channels",
    )


def sweep_table(sweep: Sweep) -> Table:
    """Perplexity and spike statistics by k, beside the report's figures for the 7B."""
    note = (
        "ratio: perplexity over that without spikes. empty: slots without a spike in windows of three steps. "
        "bits: spikes per entry, bitwise. 7B: the report's; quality: mean of 7 benchmarks over BF16's."
    )
    headings = ("perplexity", "ratio", "empty", "<=7", "bits", "7B: quality", "empty", "<=7")
    title = f"{sweep.model}: {sweep.tokens} predicted tokens of {sweep.text}"
    table = Table("k", *headings, title=title, notes=[note])
    table.add("off", f"{sweep.without:.3f}", "1", "", "", "", "1")
    for point in sweep.points:
        table.add(
            k_label(point),
            f"{point.perplexity:.3f}",
            f"{sweep.ratio(point):.4f}",
            f"{point.stats.window_sparsity:.1%}",
            f"{point.stats.share_at_most_7:.1%}",
            f"{point.stats.spikes_per_channel['bitwise']:.2f}",
            *_reported(point),
        )
    return table


def k_label(point: SweepPoint) -> str:
    """k, or "file" for the k stored in the file."""
    return "file" if point.k is None else f"{point.k:g}"


def _reported(point: SweepPoint) -> tuple[str, ...]:
    reported = None if point.k is None else REPORTED_SWEEP.get(point.k)
    if reported is None:
        return ()
    quality = reported.average / REPORTED_WITHOUT
    return (f"{quality:.4f}", f"{reported.sparsity:.1%}", f"{reported.share_at_most_7:.1%}")


def _cells(stats: SpikeStats) -> tuple[str, ...]:
    spikes = stats.spikes_per_channel
    return (
        "" if stats.k is None else f"{stats.k:g}",
        f"{stats.share_at_most_7:.1%}",
        f"{stats.share_over_16:.1%}",
        f"{stats.silent_share:.1%}",
        f"{spikes['unary']:.2f}",
        f"{spikes['bitwise']:.2f}",
        f"{spikes['twos_complement']:.2f}",
        f"{stats.window_sparsity:.1%}",
        f"{stats.burst_share:.3%}",
        str(stats.largest),
    )


def _joule(picojoule: float) -> str:
    """Picojoules with the unit that gives at most three digits before the point."""
    value = picojoule
    for unit in ("pJ", "nJ", "µJ", "mJ"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} J"
