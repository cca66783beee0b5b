"""Tables of spike statistics for the terminal; each under 80 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sb_edge.bench.spikes.stats_plots import short_label
from sb_edge.bench.spikes.sweep import REPORTED_SWEEP, REPORTED_WITHOUT, Sweep, SweepPoint
from sb_edge.bench.spikes.theory import SyntheticCheck
from sb_edge.evaluate.energy import ASSUMPTIONS, DRAMS, Energy
from sb_edge.evaluate.spike_stats import REPORTED, SpikeReport, SpikeStats, by_projection, by_site, total
from sb_edge.util.output import format_bytes

NOTES = (
    "<=7, >16, silent, >127: shares of entries (one channel, one token). unary, bits, two's: spikes of an "
    "entry in binary or ternary, plain or bidirectional bitwise, two's complement coding. empty: slots "
    "without a spike in windows of three steps, bitwise; a count of more bits takes more windows. max: the "
    "largest |s|. An input that several projections share is in `all inputs` once."
)


def stats_table(report: SpikeReport, *, layers: bool = False) -> RenderableType:
    """Projections over all layers, with `layers` each coded input too; total, the report's 7B, energy."""
    table = _table("input of", "k", "<=7", ">16", "silent", "unary", "bits", "two's", "empty", ">127", "max")
    if layers:
        for stats in by_site(report.sites):
            _add(table, f"{stats.layer} {stats.projections[0]}", stats)
        table.add_section()
    for stats in by_projection(report.sites):
        _add(table, short_label(stats.projections), stats)
    _add(table, "all inputs", total(report.sites))
    table.add_row(
        "report, 7B", "3", f"{REPORTED.share_at_most_7:.1%}", f"~{REPORTED.share_over_16:.0%}",
        f"{REPORTED.silent_share:.1%}", "", f"{REPORTED.bitwise:.2f}", "", f"{REPORTED.window_sparsity:.2%}",
        "", "", style="dim",
    )  # fmt: skip
    return Group(
        Text(f"{report.model}: {report.tokens} tokens of {report.text}"),
        table,
        Text(NOTES, style="dim"),
        Text(),
        energy_table(report.energy),
    )


def energy_table(energy: Energy) -> RenderableType:
    """The report's estimate, the one with DRAM, and the assumptions of both."""
    compute = _table("coded projections, compute alone", "MACs", "pJ/MAC", "energy", "over spiking")
    for method in (energy.fp16, energy.int8, energy.spiking):
        compute.add_row(
            method.name,
            f"{energy.coded_macs:,}",
            f"{method.coded_pj / energy.coded_macs:.4f}",
            _joule(method.coded_pj),
            f"{method.coded_pj / energy.spiking.coded_pj:.2f}x",
        )
    low = DRAMS[1]
    whole = _table(
        "whole model",
        "weights",
        "compute",
        "DRAM",
        "total",
        *(dram.name.removeprefix("45 nm, ") for dram in DRAMS),
    )
    for method in energy.methods:
        ratios = (f"{method.total_pj(dram) / energy.spiking.total_pj(dram):.3f}x" for dram in DRAMS)
        whole.add_row(
            method.name,
            format_bytes(method.weight_bytes),
            _joule(method.compute_pj),
            _joule(method.dram_pj(low)),
            _joule(method.total_pj(low)),
            *ratios,
        )
    return Group(
        Text("Energy of one decoded token, an estimate of the report's kind, not a measurement"),
        compute,
        Text(),
        Text(
            f"With every weight read from DRAM once, {low.pj_per_bit:.1f} pJ/bit; right: total over spiking"
        ),
        whole,
        Text("Assumptions", style="bold"),
        *(Text(f"- {line}", style="dim") for line in (*ASSUMPTIONS, *(dram.source for dram in DRAMS))),
    )


def synthetic_table(check: SyntheticCheck) -> RenderableType:
    """Measured beside closed form."""
    table = _table("statistic", "engine", "closed form", "difference")
    for comparison in check.comparisons:
        table.add_row(
            comparison.name,
            f"{comparison.measured:.5f}",
            f"{comparison.closed_form:.5f}",
            f"{comparison.difference:.3%}",
        )
    counts = check.counts
    title = f"{check.distribution}, k = {check.k:g}: {counts.tokens} rows of {counts.channels} channels"
    return Group(Text(title), table)


def sweep_table(sweep: Sweep) -> RenderableType:
    """The report's table with this model's figures beside it."""
    table = _table("k", "perplexity", "ratio", "empty", "<=7", "bits", "7B: quality", "empty", "<=7")
    table.add_row("off", f"{sweep.without:.3f}", "1", *[""] * 3, "1", "", "")
    for point in sweep.points:
        table.add_row(
            k_label(point),
            f"{point.perplexity:.3f}",
            f"{sweep.ratio(point):.4f}",
            f"{point.stats.window_sparsity:.1%}",
            f"{point.stats.share_at_most_7:.1%}",
            f"{point.stats.spikes_per_channel['bitwise']:.2f}",
            *_reported(point),
        )
    note = (
        "ratio: perplexity over that without spikes. empty: slots without a spike in windows of three steps. "
        "bits: spikes of an entry, bitwise. 7B: the report's; quality: mean of 7 benchmarks over BF16's."
    )
    title = f"{sweep.model}: {sweep.tokens} predicted tokens of {sweep.text}"
    return Group(Text(title), table, Text(note, style="dim"))


def k_label(point: SweepPoint) -> str:
    """k, or "file" for what the file stores."""
    return "file" if point.k is None else f"{point.k:g}"


def _reported(point: SweepPoint) -> Sequence[str]:
    reported = None if point.k is None else REPORTED_SWEEP.get(point.k)
    if reported is None:
        return ("", "", "")
    quality = reported.average / REPORTED_WITHOUT
    return (f"{quality:.4f}", f"{reported.sparsity:.1%}", f"{reported.share_at_most_7:.1%}")


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add(table: Table, label: str, stats: SpikeStats) -> None:
    spikes = stats.spikes_per_channel
    table.add_row(
        label,
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
    """Picojoules in the unit that leaves at most three digits before the point."""
    value = picojoule
    for unit in ("pJ", "nJ", "µJ", "mJ"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} J"
