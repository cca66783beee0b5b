"""Values of options: counts of tokens, sizes in bytes, lists."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

_TOKENS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
PATH = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Tokens(click.ParamType):
    """A number of tokens: `512`, `64k` (65536), `1.5M` (1572864).

    Args:
        least: Smallest number that is accepted.
        most: Largest number that is accepted.
    """

    name = "tokens"

    def __init__(self, least: int = 1, most: int = 2**31 - 1) -> None:
        self._least, self._most = least, most

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; fails as click's own types do."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmg]?)", value.strip(), re.ASCII | re.IGNORECASE)
        count = Fraction(found[1]) * _TOKENS[found[2].lower()] if found else Fraction(1, 2)
        if count.denominator != 1:
            self.fail(f"{value!r} is not a number of tokens such as 512, 64k or 1M", param, ctx)
        if not self._least <= count <= self._most:
            self.fail(f"{value!r} is not in the range {self._least} to {self._most}", param, ctx)
        return int(count)


class TokenLimit(Tokens):
    """A number of tokens, or -1 for no limit."""

    def convert(  # type: ignore[override]
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """The number, None without a limit; fails as click's own types do."""
        return None if value == "-1" else super().convert(value, param, ctx)


class Real(click.FloatRange):
    """A finite number within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; NaN is within every range of click's own type."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


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
        return int(match[1]) * _BYTES[match[2]]


class OneOf(click.ParamType):
    """A name out of a list, in any case.

    Args:
        names: In lower case.
        problem: What to say of another value.
    """

    name = "name"

    def __init__(self, names: Sequence[str], problem: str = "{!r} is not one of") -> None:
        self._names, self._problem = names, problem

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; fails as click's own types do."""
        if value.lower() not in self._names:
            self.fail(f"{self._problem.format(value)} {', '.join(self._names)}", param, ctx)
        return value.lower()


class CommaSeparated(click.ParamType):
    """Values separated by commas.

    Args:
        one: Type of a value.
        name: Name of the whole in help texts.
    """

    def __init__(self, one: click.ParamType, name: str) -> None:
        self._one, self.name = one, name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values; fails as click's own types do."""
        if isinstance(value, tuple):
            return value
        return tuple(self._one.convert(part.strip(), param, ctx) for part in value.split(","))


class TokenCounts(CommaSeparated):
    """Numbers of tokens separated by commas: `0,4096,64k,1M`."""

    def __init__(self, least: int = 0) -> None:
        super().__init__(Tokens(least), "tokens")
