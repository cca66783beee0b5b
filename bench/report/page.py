"""One self-contained HTML page: what was measured, on what, and what the demo said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from sb_edge import __version__
from sb_edge.bench.report.curves import PUBLISHED_SPEEDUP, best, chart_svg, charts
from sb_edge.bench.report.row_tables import Column, columns, footnotes, series_name
from sb_edge.bench.rows.compare import SpeedComparison, first_against_others
from sb_edge.bench.rows.row import Row
from sb_edge.engine.machine import Machine
from sb_edge.util.files import atomic_output
from sb_edge.util.output import format_bytes, format_depth, format_duration


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation said; `role` is "user", "assistant" or "system"."""

    role: str
    text: str


@dataclass(frozen=True)
class Transcript:
    """A conversation, with a note below it."""

    title: str
    turns: Sequence[Turn]
    note: str = ""
    kind: str = "transcript"


@dataclass(frozen=True)
class LayerMap:
    """Which layers are GLA (`recurrent[i]` true) and which sliding-window attention, with a note below."""

    title: str
    recurrent: Sequence[bool]
    note: str = ""
    kind: str = "layers"


@dataclass(frozen=True)
class Facts:
    """Label and value pairs, for instance perplexities, with a note below them."""

    title: str
    pairs: Sequence[tuple[str, str]]
    note: str = ""
    kind: str = "facts"


Section = Transcript | LayerMap | Facts


@dataclass(frozen=True)
class _Headline:
    """The first thing to read: a figure, what it is of, and what it says."""

    name: str
    figure: str
    text: str


@dataclass(frozen=True)
class _Table:
    """Rows of one kind, with the columns and the notes that go with them."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str]


def write_report(
    path: Path, rows: Sequence[Row], machine: Machine | None = None, sections: Sequence[Section] = ()
) -> None:
    """Write the page: plots over depth, the tables, `sections` in their order, machines and engines.

    The page loads nothing from anywhere: styles and plots are in it. It follows the reader's choice of light
    or dark.

    Args:
        path: of the page.
        rows: of decoding, of prompts, or of both.
        machine: this one, shown besides those that the rows were measured on.
        sections: between measurements and machine.

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
        plots=[chart_svg(chart) for chart in charts(rows)],
        tables=_tables(rows),
        comparisons=_comparisons(rows),
        machines=_machines(rows, machine),
        sections=sections,
    )
    with atomic_output(Path(path)) as partial:
        partial.write_text(page, encoding="utf-8")


def _tables(rows: Sequence[Row]) -> list[_Table]:
    kinds = {
        "Decoding": [row for row in rows if not row.is_prefill],
        "Prompts": [row for row in rows if row.is_prefill],
    }
    return [_Table(title, columns(kind), kind, footnotes(kind)) for title, kind in kinds.items() if kind]


def _comparisons(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    """Test, models, ratio, interval and what else there is to say of each comparison."""
    return [
        (one.ours.label, f"{series_name(one.ours, rows)} / {series_name(one.theirs, rows)}", *_ratio(one))
        for one in first_against_others(rows)
    ]


def _ratio(one: SpeedComparison) -> tuple[str, str, str]:
    interval = "" if one.speed.low is None else f"{one.speed.low:.3f} to {one.speed.high:.3f}"
    notes = ["in turns" if one.speed.paired else "fitted" if one.speed_is_fitted else "not in turns"]
    if one.ttft is not None:
        notes.append(f"first token {one.ttft:.2f} times as soon" + (", fitted" if one.ttft_is_fitted else ""))
    if (one.ours.n_depth in PUBLISHED_SPEEDUP) and one.ours.is_spikingbrain and not one.ours.is_prefill:
        notes.append(f"arXiv 2509.05276: {PUBLISHED_SPEEDUP[one.ours.n_depth]}")
    return f"{one.speed.value:.3f}", interval, "; ".join(notes)


def _machines(rows: Sequence[Row], machine: Machine | None) -> list[list[tuple[str, str]]]:
    """What is known of each machine and engine behind the rows."""
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
    return [*_speedups(decode), *_soonest(rows), *_kept(decode)]


def _speedups(rows: Sequence[Row]) -> list[_Headline]:
    """SpikingBrain over the best setting of each baseline, at the deepest depth that both have."""
    found = []
    for ours in dict.fromkeys(row.model for row in rows if row.is_spikingbrain):
        for other in dict.fromkeys(row.model for row in rows if not row.is_spikingbrain):
            for depth in sorted({row.n_depth for row in rows}, reverse=True):
                fast, baseline = best(rows, ours, depth), best(rows, other, depth)
                if fast is None or baseline is None:
                    continue
                text = f"as fast as {series_name(baseline, rows)} in decoding at depth {format_depth(depth)}"
                found.append(_Headline(ours, f"{fast.median_ts / baseline.median_ts:.2f} ×", text))
                break
    return found


def _soonest(rows: Sequence[Row]) -> list[_Headline]:
    """The time to the first token of SpikingBrain's longest prompt."""
    found = []
    for name in dict.fromkeys(row.model for row in rows if row.is_spikingbrain and row.ttft_ns):
        row = max((row for row in rows if row.model == name and row.ttft_ns), key=lambda row: row.n_depth)
        text = f"to the first token of a prompt of {format_depth(row.n_depth)} tokens"
        found.append(_Headline(name, format_duration(row.ttft_ns or 0), text))
    return found


def _kept(rows: Sequence[Row]) -> list[_Headline]:
    """How much of its speed each model keeps from its shallowest to its deepest depth."""
    found = []
    for name in dict.fromkeys(series_name(row, rows) for row in rows):
        series = sorted((row for row in rows if series_name(row, rows) == name), key=lambda row: row.n_depth)
        first, last = series[0], series[-1]
        if first.n_depth == last.n_depth:
            continue
        text = (
            f"of its speed at depth {format_depth(first.n_depth)} is left at depth "
            f"{format_depth(last.n_depth)}, with a context of {format_bytes(last.context_bytes)}"
        )
        found.append(_Headline(name, f"{100 * last.median_ts / first.median_ts:.0f} %", text))
    return found
