from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from sb_edge.bench.report.chart import Chart, durations
from sb_edge.bench.report.curves import chart_svg, decode_speed, memory, save_plot, speedup
from sb_edge.bench.report.page import Facts, LayerMap, Transcript, Turn, write_report
from sb_edge.bench.rows.row import Row
from sb_edge.engine.machine import Machine
from sb_edge.util.errors import OutputError
from sb_edge.util.plot import LABEL_GAP, spread

VOID = {"meta", "br"}
SECTIONS = (
    Transcript(
        "Chat", [Turn("user", "Is 1 < 2?"), Turn("assistant", "<script>alert('yes')</script>")], "greedy"
    ),
    LayerMap("Layers", [True, False, True], "untrained"),
    Facts("Perplexity", [("default", "19.3"), ("base", "18.9")]),
)


class Outline(HTMLParser):
    """Checks that elements are closed in order; collects what the page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(path: Path) -> Outline:
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    outline.close()
    return outline


def test_the_page_is_sound_and_self_contained(tmp_path: Path, rows: list[Row], machine: Machine) -> None:
    path = tmp_path / "report.html"
    write_report(path, rows, machine, SECTIONS)
    outline = parse(path)
    assert outline.open == []
    assert all(target.startswith("#") for target in outline.loads)
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", page)
    assert "script" not in outline.tags
    assert "link" not in outline.tags
    assert outline.tags.count("svg") == 3  # speed, memory and roofline; a speed-up needs a SpikingBrain


def test_the_page_says_everything(tmp_path: Path, rows: list[Row], machine: Machine) -> None:
    path = tmp_path / "report.html"
    write_report(path, rows, machine, SECTIONS)
    text = " ".join(parse(path).words)
    for expected in (
        "tg32 @ d262144*†", "llama-1b", "synthetic context fill", "<script>alert('yes')</script>",
        "GLA", "SWA", "untrained", "19.3", machine.cpu, "0001-a.patch", "build 0123", "tokens per second",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_page_without_measurements(tmp_path: Path, machine: Machine) -> None:
    path = tmp_path / "report.html"
    write_report(path, [], machine)
    assert "svg" not in parse(path).tags


@pytest.fixture
def many_rows(rows: list[Row], make_row: Callable[..., Row]) -> list[Row]:
    """Decoding at the published depths and prompts, of SpikingBrain and of a Transformer with two caches."""
    found = []
    for depth in (0, 65536, 131072, 262144):
        ours = {"model": "1b", "model_type": "spikingbrain 1B Q4_0", "n_depth": depth, "turns": f"t{depth}"}
        found.append(make_row(**ours, label=f"tg32 @ d{depth}"))
        for kind in ("f16", "q8_0"):
            slower = 1 + depth / 16384
            speeds = tuple(speed / slower for speed in found[-1].samples_ts[:3])
            theirs = {"model": "llama-1b", "type_k": kind, "type_v": kind, "n_depth": depth}
            speed = {"samples_ts": speeds, "median_ts": sorted(speeds)[1]}
            turns = f"t{depth}" if kind == "f16" else None
            label = f"tg32 @ d{depth}"
            found.append(make_row(**theirs, **speed, turns=turns, label=label, fill="synthetic"))
    for depth in (65536, 131072):
        prompt = {"n_prompt": 512, "n_gen": 0, "n_depth": depth, "label": f"pp512 @ d{depth}"}
        nothing = {"bytes_per_token": None, "roofline_fraction": None}
        ours = {"model": "1b", "model_type": "spikingbrain 1B Q4_0", "ttft_source": "measured"}
        found.append(make_row(**prompt, **nothing, **ours, ttft_ns=depth * 10**7))
        fitted = {
            "fill": "synthetic",
            "ttft_source": "fitted",
            "ttft_ns": depth * 10**9,
            "fit_residual": 0.04,
        }
        found.append(make_row(**prompt, **nothing, **fitted, model="llama-1b"))
    return found


def test_published_figures_stand_beside_ours(tmp_path: Path, many_rows: list[Row]) -> None:
    path = tmp_path / "report.html"
    write_report(path, many_rows)
    outline = parse(path)
    assert outline.open == []
    assert outline.tags.count("svg") == 6
    text = " ".join(outline.words)
    for expected in (
        "Decode speed over a baseline's best setting", "published", "arXiv 2509.05276: 15.39", "17.00 ×",
        "Time to the first token", "hollow: fitted, not measured", "36.4 h‡", "largest residual 4%",
        "to the first token of a prompt of 128k tokens", "1b / llama-1b", "a processor", "0123456789abcdef",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_speed_up_is_over_the_best_setting(many_rows: list[Row]) -> None:
    (chart,) = speedup([row for row in many_rows if not row.is_prefill])
    ours, published = chart.lines
    assert [point.value for point in ours.points] == pytest.approx([1, 5, 9, 17])
    assert all(point.low == pytest.approx(point.value) for point in ours.points)
    assert [(point.depth, point.value) for point in published.points] == [
        (65536, 4.04),
        (131072, 7.52),
        (262144, 15.39),
    ]
    assert published.dashed


def test_the_page_follows_light_and_dark(tmp_path: Path, rows: list[Row], machine: Machine) -> None:
    path = tmp_path / "report.html"
    write_report(path, rows, machine)
    page = path.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in page
    defined, used = set(re.findall(r"(--[a-z0-9-]+):", page)), set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    assert used <= defined


@pytest.mark.parametrize("chart", [decode_speed, memory])
def test_plots_are_sound_svg_in_the_pages_colours(
    rows: list[Row], chart: Callable[[list[Row]], Chart]
) -> None:
    svg = chart_svg(chart(rows))
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox")
    assert root.get("width") is None
    drawn = "".join(root.itertext())
    for label in ("1b", "llama-1b", "256k", "tokens in the context"):
        assert label in drawn
    assert {"var(--series-1)", "var(--series-2)", "var(--ink)"} <= set(re.findall(r"var\([^)]*\)", svg))
    assert not re.search(r"#0[1-4]0[1-4]0[1-6]", svg)


def test_plot_files(tmp_path: Path, rows: list[Row]) -> None:
    save_plot(rows, tmp_path / "plot.png")
    save_plot(rows, tmp_path / "plot.svg")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1200
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")


def test_plots_of_one_row(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    save_plot([make_row(n_depth=0)], tmp_path / "plot.png")
    assert "tg32" not in chart_svg(decode_speed([make_row()]))


def test_a_plot_of_nothing_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(OutputError, match="no rows"):
        save_plot([], tmp_path / "plot.png")
    with pytest.raises(OutputError, match=r"unknown kind of plot \(found \.gif"):
        save_plot(rows, tmp_path / "plot.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("heights", [[0.5], [0.1, 0.11, 0.12], [0.97, 0.98, 0.99], [-1.0, 0.0, 2.0]])
def test_labels_are_moved_apart(heights: list[float]) -> None:
    moved = spread(heights)
    assert all(upper - lower >= LABEL_GAP - 1e-9 for lower, upper in pairwise(moved))
    assert max(moved) <= 1.0


@pytest.mark.parametrize(
    ("low", "high"), [(2e5, 3e5), (2.9e9, 3.1e9), (1e9, 4e9), (45e9, 45e9), (4e6, 3e12), (5e14, 5e14)]
)
def test_every_range_of_durations_has_a_tick(low: float, high: float) -> None:
    axes = Figure().subplots()
    durations(axes, low, high)
    bottom, top = axes.get_ylim()
    assert bottom <= low <= high <= top
    assert any(bottom <= tick <= top for tick in axes.yaxis.get_major_locator()())
