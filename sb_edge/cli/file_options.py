"""Options that name output files, and the check of all of them before a command runs."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from sb_edge.util.errors import OutputError
from sb_edge.util.files import require_output

_TEXTS = frozenset({"prompt", "prompts", "system", "grammar", "json_schema", "stops", "reverse_prompts"})
"""Parameters whose values are never names of files."""


class OutputFile(click.Path):
    """Name of a file to write.

    Args:
        replaces: parameter that names an input which this output may replace.
        path_type: type of the value.
    """

    name = "file"

    def __init__(self, *, replaces: str | None = None, path_type: type[Any] = Path) -> None:
        super().__init__(path_type=path_type)
        self.replaces = replaces


class FileCommand(click.Command):
    """A command that refuses, before it runs, an output that cannot be written or would replace an input."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the outputs, then run."""
        outputs = {
            param.name: param.type
            for param in self.params
            if param.name and isinstance(param.type, OutputFile) and ctx.params.get(param.name) is not None
        }
        given = {name: _paths(value) for name, value in ctx.params.items() if name not in _TEXTS}
        for name, kind in outputs.items():
            inputs = [
                file
                for other, paths in given.items()
                if other not in (name, kind.replaces)
                for path in paths
                for file in _files(path)
            ]
            for path in given[name]:
                if str(path) != "-":
                    _require_other_name(path, name, {each: given[each] for each in outputs})
                    require_output(path, inputs)
        return super().invoke(ctx)


def _require_other_name(path: Path, name: str, outputs: dict[str, list[Path]]) -> None:
    for other, paths in outputs.items():
        if other != name and path in paths and (path.is_file() or not path.exists()):
            raise OutputError("is given for two outputs", path=path, hint="choose another name")


def _paths(value: object) -> list[Path]:
    """A parameter's value, or values, as paths where they may be some."""
    if isinstance(value, tuple | list):
        return [path for item in value for path in _paths(item)]
    return [Path(value)] if isinstance(value, str | Path) and value else []


def _files(path: Path) -> Iterator[Path]:
    """The files that an input stands for: itself, all parts of a split model, or the content of a folder.

    A GGUF in a checkpoint's folder is an earlier output.
    """
    if path.is_dir():
        yield from (file for file in path.iterdir() if file.suffix != ".gguf" and file.is_file())
    elif path.is_file():
        yield path
        stem, of, count = path.name.rpartition("-of-")
        if of and count.endswith(".gguf"):
            yield from path.parent.glob(f"{glob.escape(stem.rstrip('0123456789'))}*{of}{glob.escape(count)}")
