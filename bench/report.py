"""One self-contained HTML page: what was measured, on what, and what the demo said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from sb_edge import __version__
from sb_edge.bench.machine import Machine
from sb_edge.bench.plot import memory_svg, speed_svg
from sb_edge.bench.results import Row
from sb_edge.bench.tables import columns, footnotes, format_depth, series_name
from sb_edge.files import atomic_output
from sb_edge.output import format_bytes


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
    """The first thing to read: how much of its speed a model keeps from one depth to another."""

    name: str
    kept: float
    shallow: str
    deep: str
    context: str


def write_report(path: Path, rows: Sequence[Row], machine: Machine, sections: Sequence[Section] = ()) -> None:
    """Write the page: plots over depth, the table, machine and engine, then `sections` in their order.

    The page loads nothing from anywhere: styles and plots are in it. It follows the reader's choice of light
    or dark.

    Raises:
        OutputError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sb_edge.bench"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        version=__version__,
        measured=max((row.test_time for row in rows), default=""),
        headlines=_headlines(rows),
        plots=[speed_svg(rows), memory_svg(rows)] if rows else [],
        columns=columns(rows) if rows else [],
        rows=rows,
        footnotes=footnotes(rows),
        machine=machine.facts(),
        sections=sections,
    )
    with atomic_output(Path(path)) as partial:
        partial.write_text(page, encoding="utf-8")


def _headlines(rows: Sequence[Row]) -> list[_Headline]:
    found = []
    for name in dict.fromkeys(series_name(row, rows) for row in rows):
        series = sorted((row for row in rows if series_name(row, rows) == name), key=lambda row: row.n_depth)
        first, last = series[0], series[-1]
        if first.n_depth == last.n_depth:
            continue
        found.append(
            _Headline(
                name=name,
                kept=last.median_ts / first.median_ts,
                shallow=format_depth(first.n_depth),
                deep=format_depth(last.n_depth),
                context=format_bytes(last.context_bytes),
            )
        )
    return found
