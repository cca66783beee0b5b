"""`sb-edge bench compare` and `bench report`: the commands that read what others measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sb_edge.bench.rows.compare import compare_rows, comparison_table, select_model
from sb_edge.bench.rows.results import read_rows
from sb_edge.cli.options import json_option
from sb_edge.cli.params import FILE, PATH
from sb_edge.util.errors import OutputError
from sb_edge.util.output import emit

if TYPE_CHECKING:
    from sb_edge.bench.rows.row import Row


class RowsOf(click.ParamType):
    """A JSON Lines file of rows, or `FILE:MODEL`: the rows of one model in it."""

    name = "rows"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Path, str | None]:
        """The file, and the model or None; a file whose own name has a colon is found too."""
        if isinstance(value, tuple):
            return value
        file, colon, model = value.rpartition(":")
        if not colon or Path(value).is_file():
            return Path(value), None
        if not file or not model:
            self.fail(f"{value!r} is not FILE or FILE:MODEL", param, ctx)
        return Path(file), model


@click.command()
@click.argument("ours", metavar="A", type=RowsOf())
@click.argument("theirs", metavar="B", type=RowsOf())
@json_option
def compare(ours: tuple[Path, str | None], theirs: tuple[Path, str | None], json_target: str | None) -> None:
    """Speed of the rows in A over those in B.

    A and B are JSON Lines files of `bench decode` or `bench prefill`, or FILE:MODEL for one model of a file:
    `rows.jsonl:1b rows.jsonl:llama-1b`. Rows are matched by label, threads and settings. The interval is
    from the bootstrap, over pairs where both were interleaved.
    """
    comparisons = compare_rows(_rows(*ours), _rows(*theirs))
    emit(comparisons, json_target, lambda console: console.print(comparison_table(comparisons)))


@click.command()
@click.argument("files", metavar="ROWS...", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=FILE, default=Path("report.html"), show_default=True, help="The page.")
def report(files: tuple[Path, ...], output: Path) -> None:
    """One self-contained HTML page of measured rows.

    ROWS are JSON Lines files of `bench decode` and `bench prefill`: speed, speed-up and memory over depth,
    the roofline, prompt speed and time to the first token, all rows, machine and engine.
    """
    from sb_edge.bench.report.page import write_report

    rows = [row for file in files for row in _rows(file, None)]
    if not rows:
        raise OutputError("there are no rows", path=files[0])
    write_report(output, rows)
    click.echo(f"{output}: {len(rows)} rows")


def _rows(file: Path, model: str | None) -> list[Row]:
    rows = read_rows(file)
    return rows if model is None else select_model(rows, model)
