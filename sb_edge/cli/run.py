"""`sb-edge run`."""

from __future__ import annotations

import os

import click

from sb_edge.engine import find_engine
from sb_edge.models.registry import BUILT_IN, resolve_gguf


@click.command(
    "run",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
)
@click.argument("tool", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(tool: str | None, arguments: tuple[str, ...]) -> None:
    """Run a tool of the engine: sb-edge run llama-bench ...

    Without TOOL, list the tools. Arguments are passed on unchanged; a built-in model's name after -m or
    --model becomes its file.
    """
    engine = find_engine()
    if tool in (None, "--help", "-h"):
        for path in sorted((engine.prefix / "bin").iterdir()):
            if os.access(path, os.X_OK) and not path.is_symlink():
                click.echo(path.name)
        return
    program = engine.tool(str(tool))
    passed = [
        str(resolve_gguf(value)) if before in ("-m", "--model") and value in BUILT_IN else value
        for before, value in zip(("", *arguments), arguments, strict=False)
    ]
    os.execv(program, [str(program), *passed])
