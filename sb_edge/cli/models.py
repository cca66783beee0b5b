"""`sb-edge models`."""

from __future__ import annotations

import click

from sb_edge.cli.options import json_option
from sb_edge.models.builders import model_path
from sb_edge.models.registry import BUILT_IN
from sb_edge.util.output import emit, format_bytes
from sb_edge.util.table import Column, Table


@click.command("models")
@json_option
def command(json_target: str | None) -> None:
    """List the built-in models.

    A model is made when a command first needs it.
    """
    found = []
    table = Table(Column("name", right=False), Column("model", right=False, wrap=True), "on disk")
    for name, description in BUILT_IN.items():
        path = model_path(name)
        size = path.stat().st_size if path.is_file() else None
        found.append(
            {
                "name": name,
                "description": description,
                "path": None if size is None else str(path),
                "bytes": size,
            }
        )
        table.add(name, description, "-" if size is None else format_bytes(size))
    emit(found, json_target, lambda console: console.print(table))
