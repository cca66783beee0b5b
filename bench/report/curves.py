"""Charts of rows: speed, speed-up, roofline and memory over depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from sb_edge.bench.report.chart import (
    Chart,
    ChartPoint,
    Line,
    draw_chart,
    durations,
    linear_or_log,
    percentages,
    sizes,
)
from sb_edge.bench.rows.compare import row_ratio
from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.row_tables import series_name
from sb_edge.util.errors import OutputError
from sb_edge.util.plot import PAGE, PAPER, inline_svg, write_figure

PUBLISHED_SPEEDUP = {65536: 4.04, 131072: 7.52, 262144: 15.39}
"""Decode speed of SpikingBrain-1B over Llama-3.2-1B, Q4_0, on a desktop CPU (arXiv 2509.05276)."""

PUBLISHED_NAME = "published"


def charts(rows: Sequence[Row]) -> list[Chart]:
    """All charts that these rows have values for."""
    decode = [row for row in rows if not row.is_prefill]
    prompts = [row for row in rows if row.is_prefill]
    found = []
    if decode:
        found += [decode_speed(decode), *speedup(decode), memory(decode), roofline(decode)]
    if prompts:
        found += [prompt_speed(prompts), *first_token(prompts)]
        if not decode:
            found.append(memory(prompts))
    return found


def chart_svg(chart: Chart) -> str:
    """A chart as an SVG element in the page's colours."""
    return inline_svg(chart.name, lambda axes: draw_chart(axes, chart, PAGE))


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw speed and memory over depth side by side, for prompts also the time to the first token.

    The file extension selects PNG, SVG or PDF.

    Raises:
        OutputError: another extension, no rows, or the file cannot be written.
    """
    if not rows:
        raise OutputError("no rows to plot", path=path)
    shown = (
        [prompt_speed(rows), *first_token(rows), memory(rows)]
        if rows[0].is_prefill
        else [decode_speed(rows), memory(rows)]
    )

    def draw(figure: Figure) -> None:
        for axes, chart in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            draw_chart(axes, chart, PAPER)

    write_figure(path, (6.5 * len(shown), 4.6), draw)


def decode_speed(rows: Sequence[Row]) -> Chart:
    """Tokens per second over depth."""
    hollow = "; hollow: synthetic context fill" if any(row.fill == "synthetic" for row in rows) else ""
    return Chart(
        "decode-speed",
        "Decode speed, tokens per second",
        f"median; bars: slowest and fastest repetition{hollow}",
        _lines(rows, _speed_point),
        linear_or_log,
    )


def prompt_speed(rows: Sequence[Row]) -> Chart:
    """Prompt tokens per second over depth."""
    hollow = "; hollow: synthetic context fill, or fitted" if any(row.fill != "real" for row in rows) else ""
    return Chart(
        "prompt-speed",
        "Prompt speed, tokens per second",
        f"median; bars: slowest and fastest repetition{hollow}",
        _lines(rows, _speed_point),
        linear_or_log,
        "prompt tokens before the timed ones (logarithmic)",
    )


def first_token(rows: Sequence[Row]) -> list[Chart]:
    """Time to the first token over prompt length; empty if no row has one."""
    timed = [row for row in rows if row.ttft_ns]
    if not timed:
        return []
    hollow = "; hollow: fitted, not measured" if any(row.ttft_source == "fitted" for row in timed) else ""
    lines = _lines(
        timed,
        lambda row: ChartPoint(row.n_depth, float(row.ttft_ns or 0), hollow=row.ttft_source == "fitted"),
    )
    return [
        Chart(
            "first-token",
            "Time to the first token",
            f"from an empty context{hollow}",
            lines,
            durations,
            "prompt tokens (logarithmic)",
        )
    ]


def memory(rows: Sequence[Row]) -> Chart:
    """Size of the context over depth, bytes."""
    return Chart(
        "memory",
        "Memory of the context",
        "KV cache and recurrent state, without weights",
        _lines(
            rows,
            lambda row: ChartPoint(row.n_depth, float(max(row.context_bytes, 1)), hollow=row.fill != "real"),
        ),
        sizes,
    )


def roofline(rows: Sequence[Row]) -> Chart:
    """Share of the read bandwidth that decoding uses."""
    return Chart(
        "roofline",
        "Share of the roofline",
        "bytes read per token x speed, over the read bandwidth measured in the same run",
        _lines(
            rows, lambda row: ChartPoint(row.n_depth, row.roofline_fraction or 0, hollow=row.fill != "real")
        ),
        percentages,
    )


def speedup(rows: Sequence[Row]) -> list[Chart]:
    """SpikingBrain's decode speed over each baseline's best setting, and the published ratios.

    Empty if no depth was measured for both.
    """
    lines = [
        Line(f"{model} / {other}", [_speedup_point(*pair) for pair in pairs])
        for (model, other), pairs in against_baselines(rows).items()
    ]
    if not lines:
        return []
    published = [ChartPoint(depth, ratio) for depth, ratio in PUBLISHED_SPEEDUP.items()]
    return [
        Chart(
            "speedup",
            "Decode speed over a baseline's best setting",
            "bars: 95 % interval; hollow: synthetic fill; dashed: 1B over Llama-3.2-1B, arXiv 2509.05276",
            [*lines, Line(PUBLISHED_NAME, published, dashed=True)],
            linear_or_log,
        )
    ]


def against_baselines(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[Row, Row]]]:
    """The fastest settings of each SpikingBrain model and each baseline, by their names.

    Pairs are in order of depth; two models without a common depth are left out.
    """
    ours = dict.fromkeys(row.model for row in rows if row.is_spikingbrain)
    others = dict.fromkeys(row.model for row in rows if not row.is_spikingbrain)
    found = {pair: list(_at_common_depths(rows, *pair)) for pair in product(ours, others)}
    return {pair: common for pair, common in found.items() if common}


def _at_common_depths(rows: Sequence[Row], *models: str) -> Iterator[tuple[Row, Row]]:
    for depth in sorted({row.n_depth for row in rows}):
        ours, theirs = (
            [row for row in rows if row.model == model and row.n_depth == depth] for model in models
        )
        if ours and theirs:
            yield max(ours, key=lambda row: row.median_ts), max(theirs, key=lambda row: row.median_ts)


def _speedup_point(ours: Row, theirs: Row) -> ChartPoint:
    ratio = row_ratio(ours, theirs)
    return ChartPoint(ours.n_depth, ratio.value, ratio.low, ratio.high, hollow=theirs.fill != "real")


def _speed_point(row: Row) -> ChartPoint:
    low, high = (pick(row.samples_ts, default=None) for pick in (min, max))
    return ChartPoint(row.n_depth, row.median_ts, low, high, hollow=row.fill != "real")


def _lines(rows: Sequence[Row], point: Callable[[Row], ChartPoint]) -> list[Line]:
    """One line per model and setting; the last of several rows at one depth is used."""
    found = []
    for name in dict.fromkeys(series_name(row, rows) for row in rows):
        by_depth = {row.n_depth: row for row in rows if series_name(row, rows) == name}
        found.append(Line(name, [point(by_depth[depth]) for depth in sorted(by_depth)]))
    return found
