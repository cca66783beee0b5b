"""One self-contained HTML page: results, machine, and the sections of the demo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from sb_edge import __version__
from sb_edge.bench.report.curves import PUBLISHED_SPEEDUP, against_baselines, chart_svg, charts
from sb_edge.bench.report.sensors import sensor_plots, sensor_tables
from sb_edge.bench.rows.compare import SpeedComparison, first_against_others
from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.row_tables import results_table, series_name
from sb_edge.engine.machine import Machine
from sb_edge.util.files import atomic_output
from sb_edge.util.output import format_bytes, format_depth, format_duration
from sb_edge.util.table import Column, Table


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `role` is "user", "assistant" or "system"."""

    role: str
    text: str


@dataclass(frozen=True)
class Transcript:
    """A conversation and a note below it."""

    title: str
    turns: Sequence[Turn]
    note: str = ""


@dataclass(frozen=True)
class LayerMap:
    """The kind of each layer (`recurrent[i]`: GLA, else sliding-window attention) and a note below."""

    title: str
    recurrent: Sequence[bool]
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Label and value pairs, for example perplexities, and a note below."""

    title: str
    pairs: Sequence[tuple[str, str]]
    note: str = ""


Section = Transcript | LayerMap | Facts


@dataclass(frozen=True)
class _Headline:
    """A main result: the model, the figure and its meaning."""

    name: str
    figure: str
    text: str


def write_report(
    path: Path, rows: Sequence[Row], machine: Machine | None = None, sections: Sequence[Section] = ()
) -> None:
    """Write the page: plots over depth, tables, `sections`, machines and engines.

    The page contains its styles and plots, loads nothing, and follows the reader's light or dark mode.

    Args:
        path: the HTML file.
        rows: results of decoding, of prompts, or of both.
        machine: this machine, shown in addition to those of the rows.
        sections: shown between results and machines.

    Raises:
        OutputError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sb_edge.bench.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        version=__version__,
        measured=max((row.test_time for row in rows), default=""),
        headlines=_headlines(rows),
        plots=[*map(chart_svg, charts(rows)), *sensor_plots(rows)],
        tables=_tables(rows),
        machines=_machines(rows, machine),
        sections=sections,
    )
    with atomic_output(Path(path)) as partial:
        partial.write_text(page, encoding="utf-8")


def _tables(rows: Sequence[Row]) -> list[Table]:
    kinds = {
        "Decoding": [row for row in rows if not row.is_prefill],
        "Prompts": [row for row in rows if row.is_prefill],
    }
    tables = [results_table(kind, title) for title, kind in kinds.items() if kind] + sensor_tables(rows)
    comparisons = first_against_others(rows)
    return [*tables, _ratios(comparisons, rows)] if comparisons else tables


def _ratios(comparisons: Sequence[SpeedComparison], rows: Sequence[Row]) -> Table:
    columns: dict[Column | str, Callable[[SpeedComparison], str]] = {
        Column("test", right=False): lambda one: one.ours.label,
        Column("models", right=False): lambda one: (
            f"{series_name(one.ours, rows)} / {series_name(one.theirs, rows)}"
        ),
        "ratio": lambda one: f"{one.speed.value:.3f}",
        Column("95 % interval", right=False): lambda one: (
            "" if one.speed.low is None else f"{one.speed.low:.3f} to {one.speed.high:.3f}"
        ),
        Column("", right=False): _remarks,
    }
    note = (
        "Speed of the first model over the second. Interleaved: median over pairs of consecutive "
        "repetitions, with a bootstrap interval over the pairs. Otherwise: ratio of medians. "
        "TTFT ratio: time to the first token of the second model over the first."
    )
    return Table.of(comparisons, columns, title="Ratios", notes=[note])


def _remarks(one: SpeedComparison) -> str:
    notes = ["interleaved" if one.speed.paired else "fitted" if one.speed_is_fitted else "not interleaved"]
    if one.ttft is not None:
        notes.append(f"TTFT ratio {one.ttft:.2f}" + (", fitted" if one.ttft_is_fitted else ""))
    if (one.ours.n_depth in PUBLISHED_SPEEDUP) and one.ours.is_spikingbrain and not one.ours.is_prefill:
        notes.append(f"arXiv 2509.05276: {PUBLISHED_SPEEDUP[one.ours.n_depth]}")
    return "; ".join(notes)


def _machines(rows: Sequence[Row], machine: Machine | None) -> list[list[tuple[str, str]]]:
    """Label and value pairs of each machine and engine."""
    known = list(dict.fromkeys(row.machine for row in rows if row.machine is not None))
    if machine is not None and machine not in known:
        known.insert(0, machine)
    described = {(one.id, one.engine_key) for one in known}
    others = {
        (row.machine_id, row.engine_key): [
            ("Processor", row.cpu_info),
            ("Engine", f"llama.cpp {row.build_commit}, build {row.engine_key}"),
        ]
        for row in rows
        if (row.machine_id, row.engine_key) not in described
    }
    return [*(one.facts() for one in known), *others.values()]


def _headlines(rows: Sequence[Row]) -> list[_Headline]:
    decode = [row for row in rows if not row.is_prefill]
    return [*_speedups(decode), *_first_tokens(rows), *_retained_speeds(decode)]


def _speedups(rows: Sequence[Row]) -> list[_Headline]:
    """SpikingBrain's decode speed over each baseline's best setting, at the deepest common depth."""
    found = []
    for pairs in against_baselines(rows).values():
        ours, theirs = pairs[-1]
        text = f"the decode speed of {series_name(theirs, rows)} at depth {format_depth(theirs.n_depth)}"
        found.append(_Headline(ours.model, f"{ours.median_ts / theirs.median_ts:.2f} ×", text))
    return found


def _first_tokens(rows: Sequence[Row]) -> list[_Headline]:
    """Time to the first token of SpikingBrain's longest prompt."""
    found = []
    for name in dict.fromkeys(row.model for row in rows if row.is_spikingbrain and row.ttft_ns):
        row = max((row for row in rows if row.model == name and row.ttft_ns), key=lambda row: row.n_depth)
        text = f"to the first token of a prompt of {format_depth(row.n_depth)} tokens"
        found.append(_Headline(name, format_duration(row.ttft_ns or 0), text))
    return found


def _retained_speeds(rows: Sequence[Row]) -> list[_Headline]:
    """Each model's speed at its deepest depth over that at its shallowest."""
    found = []
    for name in dict.fromkeys(series_name(row, rows) for row in rows):
        series = sorted((row for row in rows if series_name(row, rows) == name), key=lambda row: row.n_depth)
        first, last = series[0], series[-1]
        if first.n_depth == last.n_depth:
            continue
        text = (
            f"of its speed at depth {format_depth(first.n_depth)} remains at depth "
            f"{format_depth(last.n_depth)}; size of the context: {format_bytes(last.context_bytes)}"
        )
        found.append(_Headline(name, f"{100 * last.median_ts / first.median_ts:.0f} %", text))
    return found
