"""Values of options: counts of tokens, sizes in bytes, lists."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from typing import Any

import click

_TOKENS = {"": 1, "k": 2**10, "m": 2**20}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Tokens(click.ParamType):
    """A number of tokens: `512`, `64k` (65536), `1M` (1048576).

    Args:
        least: Smallest number that is accepted.
    """

    name = "tokens"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; fails as click's own types do."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})([km]?)", value.strip(), re.ASCII | re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a number of tokens such as 512, 64k or 1M", param, ctx)
        count = int(found[1]) * _TOKENS[found[2].lower()]
        if not self._least <= count < 2**31:
            self.fail(f"{value!r} is not in the range {self._least} to {2**31 - 1}", param, ctx)
        return count


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


class CommaSeparated(click.ParamType, ABC):
    """Values separated by commas; a subclass says what one of them may be."""

    @abstractmethod
    def item(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert one value; fails as click's own types do.

        Args:
            text: The value without surrounding blanks; empty where nothing stands between two commas.
        """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values; fails as click's own types do."""
        if isinstance(value, tuple):
            return value
        return tuple(self.item(part.strip(), param, ctx) for part in value.split(","))


class TokenCounts(CommaSeparated):
    """Numbers of tokens separated by commas: `0,4096,64k,1M`."""

    name = "tokens"

    def __init__(self, least: int = 0) -> None:
        self._one = Tokens(least)

    def item(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert one number."""
        return self._one.convert(text, param, ctx)
