from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import numpy as np
import pytest
from spike_oracle import count

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.bench.spikes.stats_plots import save_report_plots, save_sweep_plot, short_label
from sb_edge.bench.spikes.stats_tables import stats_table, sweep_table
from sb_edge.bench.spikes.sweep import Sweep, SweepPoint
from sb_edge.evaluate.energy import DRAMS, Energy, estimate_energy
from sb_edge.evaluate.spike_stats import SpikeReport, SpikeStats, by_projection, by_site, engine_k, total
from sb_edge.gguf.reader import GgufHeader, TensorEntry, read_header
from sb_edge.runtime.spike_counters import SiteCounts
from sb_edge.util.errors import GgufError, OutputError, SpikeError

ROOT = Path(__file__).parents[2]
SHARED = ("attn_q", "attn_k", "attn_v")


def header(n_layer: int = 2, *, tied: bool = True, arch: str = "spikingbrain") -> GgufHeader:
    """A header with the matrices of a model: hidden 8, FFN 16, gate rank 2, vocabulary 32, in float16."""
    shapes = {"token_embd.weight": (32, 8), "output_norm.weight": (8,)}
    if not tied:
        shapes["output.weight"] = (32, 8)
    for layer in range(n_layer):
        for name in (*SHARED, "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (8, 8)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}.weight"] = (16, 8)
        shapes[f"blk.{layer}.ffn_down.weight"] = (8, 16)
    shapes["blk.1.ssm_f_a.weight"], shapes["blk.1.ssm_f_b.weight"] = (2, 8), (8, 2)
    file = Path("model.gguf")
    tensors = [
        TensorEntry(name, shape, "F16", 2 * int(np.prod(shape)), 0, file) for name, shape in shapes.items()
    ]
    return GgufHeader(arch, {"general.architecture": arch}, tensors, [file])


@pytest.fixture
def sites() -> tuple[SiteCounts, ...]:
    """Two layers, the second one GLA; heavy-tailed counts."""
    generator = np.random.default_rng(0)
    made = []
    for layer in range(2):
        for projections, width in (
            ((*SHARED, *(("ssm_f",) if layer else ())), 8),
            (("attn_output",), 8),
            (("ffn_gate", "ffn_up"), 8),
            (("ffn_down",), 16),
        ):
            draws = np.rint(3 * generator.standard_t(1.5, (40, width))).astype(np.int32)
            made.append(count(draws, layer=layer, projections=projections, threshold_sum=40 * 0.5))
    return tuple(made)


@pytest.fixture
def report(sites: tuple[SiteCounts, ...]) -> SpikeReport:
    energy = estimate_energy(header(), sites)
    return SpikeReport("model.gguf", "held-out", 40, SpikePlan(), sites, energy)


def test_statistics_of_counts_by_hand() -> None:
    counts = np.array([[0, 1, -2, 7], [0, 8, -17, 200]], dtype=np.int32)
    stats = SpikeStats(("attn_q",), (count(counts, threshold_sum=1.5),))
    assert (stats.layer, stats.k, stats.entries, stats.rows) == (0, 3.0, 8, 2)
    assert stats.silent_share == 2 / 8
    assert stats.share_at_most_7 == 5 / 8
    assert stats.share_over_16 == 2 / 8
    assert stats.negative_share == 2 / 8
    assert stats.burst_share == 1 / 8
    assert stats.largest == 200
    assert stats.mean_threshold == 0.75
    assert stats.spikes_per_channel["unary"] == 235 / 8
    assert stats.spikes_per_channel["bitwise"] == (1 + 1 + 3 + 1 + 2 + 3) / 8
    # 0001 1110 0111 in four steps; 000001000 111101111 011001000 in nine
    assert stats.spikes_per_channel["twos_complement"] == (1 + 3 + 3 + 1 + 8 + 3) / 8
    assert stats.steps_per_token == {"unary": 207 / 2, "bitwise": 11 / 2, "twos_complement": 13 / 2}
    assert stats.slot_sparsity["bitwise"] == 1 - 11 / (4 * 11)
    # 0, 1, 2, 7, 0 take one window of three steps, 8 and 17 two, 200 three
    assert stats.window_sparsity == 1 - 11 / (3 * (5 + 2 * 2 + 3))


def test_counts_that_differ_in_layer_or_k_have_neither(sites: tuple[SiteCounts, ...]) -> None:
    assert total(sites).layer is None
    assert total(sites).k == 3
    other = count(np.ones((1, 2), dtype=np.int32), k=2.5)
    assert total([sites[0], other]).k is None
    assert total([sites[0], other]).layer == 0


def test_silent_inputs_divide_by_nothing() -> None:
    stats = SpikeStats(("attn_q",), (count(np.zeros((2, 4), dtype=np.int32)),))
    assert stats.silent_share == stats.share_at_most_7 == stats.window_sparsity == 1
    assert stats.slot_sparsity == {"unary": 1.0, "bitwise": 1.0, "twos_complement": 1.0}
    assert stats.to_json()["histogram"] == [8]


def test_projections_with_the_same_inputs_share_a_line(sites: tuple[SiteCounts, ...]) -> None:
    groups = by_projection(sites)
    assert [group.projections for group in groups] == [
        SHARED, ("ssm_f",), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",),
    ]  # fmt: skip
    assert groups[1].sites == (sites[4],)
    assert total(sites).entries == sum(site.channels * site.tokens for site in sites)
    assert [stats.layer for stats in by_site(sites)] == [0] * 4 + [1] * 4


def test_short_labels() -> None:
    assert short_label((*SHARED, "ssm_f")) == "attn_q/k/v, ssm_f"
    assert short_label(("synthetic",)) == "synthetic"


def test_which_k_the_engine_is_asked_for() -> None:
    plain = header()
    assert engine_k(plain, None) == 3
    assert engine_k(plain, 2.5) == 2.5
    spiking = GgufHeader(
        plain.arch, {**plain.metadata, **SpikePlan(k=2.0).keys()}, plain.tensors, plain.files
    )
    assert engine_k(spiking, None) is None
    assert engine_k(spiking, 4) == 4
    with pytest.raises(SpikeError, match="--spike-k: must be a positive number"):
        engine_k(plain, 0)
    with pytest.raises(GgufError, match=r"has no spikes \(found llama, expected spikingbrain\)"):
        engine_k(header(arch="llama"), None)


def test_energy_of_a_token_by_hand(sites: tuple[SiteCounts, ...]) -> None:
    energy = estimate_energy(header(), sites)
    coded = 2 * (4 * 64 + 3 * 128) + 16
    assert energy.coded_macs == coded
    assert energy.other_macs == 32 * 8 + 16  # the tied output and the second half of the gate
    assert energy.fp16.coded_pj == 1.5 * coded
    assert energy.int8.compute_pj == pytest.approx(0.23 * (coded + 272))
    assert energy.fp16.weight_bytes == 2 * (coded + 272)
    assert energy.stored_bytes == 2 * (coded + 272 + 8)  # the final norm too
    spikes = sum(
        site.bit_spikes / (site.channels * site.tokens) * outputs * site.channels
        for site, outputs in zip(sites, (24, 8, 32, 8, 26, 8, 32, 8), strict=True)
    )
    assert energy.spiking.coded_pj == pytest.approx(0.03 * spikes)
    low = DRAMS[1]
    assert energy.int8.dram_pj(low) == pytest.approx((coded + 272) * 1300 / 8)
    assert energy.int8.total_pj(low) == energy.int8.compute_pj + energy.int8.dram_pj(low)


def test_only_coded_projections_are_counted_as_spikes(sites: tuple[SiteCounts, ...]) -> None:
    energy = estimate_energy(
        header(tied=False), [site for site in sites if "ffn_down" not in site.projections]
    )
    assert energy.coded_macs == 2 * (4 * 64 + 2 * 128) + 16
    assert energy.other_macs == 2 * 128 + 32 * 8 + 16


def test_the_report_s_figures_follow_from_its_spikes_per_channel() -> None:
    energy = Energy(coded_macs=10**6, other_macs=0, spikes=1.13e6, stored_bytes=10**6)
    document = energy.to_json()
    assert energy.spiking.coded_pj / 10**6 == pytest.approx(0.034, abs=2e-4)
    assert 1 - 1 / document["compute_alone"]["fp16_over_spiking"] == pytest.approx(0.977, abs=5e-4)
    assert 1 - 1 / document["compute_alone"]["int8_over_spiking"] == pytest.approx(0.852, abs=2e-3)
    # With the weights on their way from DRAM next to nothing is left.
    assert document["with_weights_from_dram"]["45 nm, low"]["int8_over_spiking"] < 1.01


def test_the_document_is_json_with_the_documented_fields(report: SpikeReport) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    described = (ROOT / "docs" / "spikes.md").read_text(encoding="utf-8").split("## JSON")[1]
    names = {*document, *document["total"], *document["energy"], *document["energy"]["methods"][0]}
    assert {name for name in names if f"`{name}`" not in described} == set()
    assert len(document["layers"]) == 8
    assert document["total"]["layer"] is None
    histogram = document["total"]["histogram"]
    assert sum(histogram) == document["total"]["entries"]
    assert histogram[-1] > 0


def test_the_worked_examples_of_the_document() -> None:
    found = doctest.testfile(str(ROOT / "docs" / "spikes.md"), module_relative=False)
    assert found.attempted >= 8
    assert found.failed == 0


def render(table: object) -> str:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_table_fits_a_terminal(report: SpikeReport) -> None:
    text = render(stats_table(report, layers=True))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert re.search(r"^report, 7B +3 +94.1% +~1% +18.4% +1.13 +69.15%", text, re.MULTILINE)
    assert re.search(r"^1 attn_q +3 ", text, re.MULTILINE)
    for assumption in ("idealised asynchronous chip", "1.3 nJ for 64 bits", "not a measurement"):
        assert assumption in " ".join(text.split())


@pytest.fixture
def sweep(sites: tuple[SiteCounts, ...]) -> Sweep:
    points = [SweepPoint(k, 20 + 1 / k, total(sites)) for k in (2.0, 3.0, 1000.0)]
    return Sweep("model.gguf", "held-out", 99, 20.0, (SweepPoint(None, 20.4, total(sites)), *points))


def test_the_sweep_beside_the_report_s(sweep: Sweep) -> None:
    text = render(sweep_table(sweep))
    assert re.search(r"^file +20.400 +1.0200 ", text, re.MULTILINE)
    assert re.search(r"^3 +20.333 +1.0167 .* 0.9824 +69.2% +95.1%", text, re.MULTILINE)
    assert re.search(r"^1000 +20.001 +1.0001 ", text, re.MULTILINE)
    document = json.loads(json.dumps(sweep.to_json(), allow_nan=False))
    described = (ROOT / "docs" / "spikes.md").read_text(encoding="utf-8").split("## JSON")[1]
    assert {name for name in (*document, *document["points"][0]) if f"`{name}`" not in described} == set()
    assert [point["k"] for point in document["points"]] == [None, 2, 3, 1000]


def test_plots_come_as_png_and_svg(report: SpikeReport, sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    files = [*save_report_plots(report, folder), *save_sweep_plot(sweep, folder)]
    assert sorted(file.name for file in files) == [
        "counts.png", "counts.svg", "layers.png", "layers.svg", "sweep.png", "sweep.svg",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(files)
    assert "127: int8" in (folder / "counts.svg").read_text(encoding="utf-8")
    assert "ffn_gate/up" in (folder / "layers.svg").read_text(encoding="utf-8")


def test_plots_with_nowhere_to_go(report: SpikeReport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        save_report_plots(report, tmp_path / "file")
    with pytest.raises(OutputError, match="the folder does not exist"):
        save_report_plots(report, tmp_path / "no" / "such")


def test_header_of_the_golden_model_is_understood(golden_gguf: Path) -> None:
    found = read_header(golden_gguf)
    assert engine_k(found, None) == 3
    site = count(np.ones((1, 4), dtype=np.int32), projections=("attn_q", "ssm_f"))
    assert estimate_energy(found, [site]).coded_macs > 0
