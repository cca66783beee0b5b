"""`sb-edge run`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

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

    Without TOOL, list the tools. Arguments are passed on unchanged; a built-in model's name after -m,
    --model or --model= becomes its file.
    """
    is_help = tool in ("--help", "-h")
    if is_help:
        click.echo(f"{click.get_current_context().get_help()}\n\nTools:")
    engine = find_engine()
    if is_help or tool is None:
        for path in sorted((engine.prefix / "bin").iterdir()):
            if os.access(path, os.X_OK) and not path.is_symlink():
                click.echo(path.name)
        return
    program = engine.tool(tool)
    os.execv(program, [str(program), *with_files(arguments)])


def with_files(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments of a tool, with the file of a built-in model in place of its name."""
    for before, value in zip(("", *arguments), arguments, strict=False):
        option, equals, name = value.rpartition("=")
        is_model = (before in ("-m", "--model") and not equals) or option == "--model"
        yield f"{option}{equals}{resolve_gguf(name)}" if is_model and name in BUILT_IN else value
