"""Sizes in bytes as command-line values."""

from __future__ import annotations

import re

import click

_MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Size(click.ParamType):
    """A number of bytes: `500M`, `2G`, or plain; decimal multiples, as llama.cpp's converter takes them."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes; fails as click's own types do."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12})([KMG]?)", value.strip().upper(), re.ASCII)
        if not match or not int(match[1]):
            self.fail(f"{value!r} is not a size such as 500M or 2G", param, ctx)
        return int(match[1]) * _MULTIPLES[match[2]]
