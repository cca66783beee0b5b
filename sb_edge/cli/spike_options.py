"""Options of the commands that decide which projections of a model spike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sb_edge.arch.spike_plan import PROJECTIONS
from sb_edge.cli.params import CommaSeparated, OneOf

if TYPE_CHECKING:
    from sb_edge.arch.spike_plan import SpikePlan

Command = TypeVar("Command", bound=Callable[..., Any])


class SpikeK(click.ParamType):
    """The k of adaptive-threshold coding, a positive number.

    Args:
        zero: Accept 0 as well: no spikes.
        file: Accept "file" as well, which becomes None: as the file says.
    """

    name = "number"

    def __init__(self, *, zero: bool = False, file: bool = False) -> None:
        self._zero, self._file = zero, file

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """A float, or None for "file"; fails as click's own types do."""
        if self._file and value == "file":
            return None
        try:
            k = float(value)
        except ValueError:
            k = float("nan")
        if 0 < k < float("inf") or (self._zero and k == 0):
            return k
        allowed = ["a positive number", *["0"] * self._zero, *["file"] * self._file]
        return self.fail(f"{value!r} is not {' or '.join(allowed)}; the release uses 3", param, ctx)


class Projections(CommaSeparated):
    """Names out of `spike_plan.PROJECTIONS`, each once: `attn_q,ffn_up`."""

    def __init__(self) -> None:
        super().__init__(OneOf(PROJECTIONS), "names")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names; fails as click's own types do."""
        names = super().convert(value, param, ctx)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            self.fail(f"{twice!r} is named twice", param, ctx)
        return names


projections_option = click.option(
    "--spike-projections",
    type=Projections(),
    help=f"Projections to code: {', '.join(PROJECTIONS)}, separated by commas.  "
    "[default: as they are, else all]",
)


def plan_text(plan: SpikePlan) -> str:
    """A spike plan for a person: k, the coded projections, and what else is rounded."""
    parts = [f"{k_text(plan)} at {' '.join(plan.projections)}"]
    if plan.query_k:
        parts.append(f"queries k = {plan.query_k:g}")
    if plan.kv_rounding:
        parts.append("K and V rounded to INT8")
    return "; ".join(parts)


def k_text(plan: SpikePlan) -> str:
    """ "k = 3", or the range of the projections' own."""
    values = coded_k(plan)
    if not values:
        return "k = 0"
    low, high = min(values), max(values)
    return f"k = {low:.3g}" if low == high else f"k per projection, {low:.3g} to {high:.3g}"


def coded_k(plan: SpikePlan) -> list[float]:
    """Every k that some projection is coded with."""
    if plan.layer_k is None:
        return [plan.k]
    return [k for row in plan.layer_k for k in row if k]
