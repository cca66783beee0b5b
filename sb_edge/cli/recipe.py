"""Recipe files: the options of a command in TOML, which options on the command line override."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

import click

from sb_edge.util.errors import ConfigError
from sb_edge.util.input_files import read_text_input


def _read(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = tomllib.loads(read_text_input(path, ConfigError))
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits too
        raise ConfigError("is not valid TOML", path=path, found=str(error)) from None
    options = {
        option.removeprefix("--"): param
        for param in ctx.command.params
        for option in param.opts
        if option.startswith("--") and option != "--config"
    }
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        if key not in options:
            nearest = difflib.get_close_matches(key, options, 1)
            raise ConfigError(
                "unknown key",
                path=path,
                item=key,
                expected=f"{nearest[0]}?" if nearest else "a long option name",
            )
        is_flag = getattr(options[key], "is_flag", False)
        if isinstance(value, bool) != is_flag:
            raise ConfigError(
                "has another type",
                path=path,
                item=key,
                found=json.dumps(value, default=str),
                expected="true or false" if is_flag else "a value",
            )
        defaults[str(options[key].name)] = _value(options[key], value)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _value(param: click.Parameter, value: Any) -> Any:
    """A TOML value as the command line would spell it; a table gives STAGE=VALUE for each of its keys."""
    if isinstance(value, dict):
        return [f"{stage}={_joined(each)}" for stage, each in value.items()]
    if getattr(param, "multiple", False):
        return [str(each) for each in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return _joined(value, ",")
    return value if isinstance(value, bool) else str(value)


def _joined(value: Any, separator: str = ":") -> str:
    return separator.join(map(str, value)) if isinstance(value, list) else str(value)


recipe_option = click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_read,
    metavar="FILE",
    help="Recipe (TOML): any of these options by its long name; options given here override it.",
)
