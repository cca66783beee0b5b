"""`sb-edge models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from sb_edge.cli.file_options import FileCommand
from sb_edge.cli.options import json_option
from sb_edge.models.registry import BUILT_IN
from sb_edge.util.output import emit, format_bytes

if TYPE_CHECKING:
    from rich.console import Console


@click.command("models", cls=FileCommand)
@json_option
def command(json_target: str | None) -> None:
    """List the built-in models.

    A model is made when a command first needs it.
    """
    found = [
        {
            "name": name,
            "description": model.description,
            "path": str(path) if path.is_file() else None,
            "bytes": path.stat().st_size if path.is_file() else None,
        }
        for name, model in BUILT_IN.items()
        for path in [model.path()]
    ]

    def render(console: Console) -> None:
        table = Table(box=None, pad_edge=False)
        for heading in ("name", "model", "on disk"):
            table.add_column(heading)
        for each in found:
            size = each["bytes"]
            table.add_row(
                str(each["name"]),
                str(each["description"]),
                format_bytes(size) if isinstance(size, int) else "-",
            )
        console.print(table)

    emit(found, json_target, render)
