"""Lists as command-line values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import click


class CommaSeparated(click.ParamType, ABC):
    """Values separated by commas; a subclass says what one of them may be."""

    @abstractmethod
    def item(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One value; fails as click's own types do.

        Args:
            text: without the blanks around it; empty where nothing stands between two commas.
        """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values; fails as click's own types do."""
        if isinstance(value, tuple):
            return value
        return tuple(self.item(part.strip(), param, ctx) for part in value.split(","))
