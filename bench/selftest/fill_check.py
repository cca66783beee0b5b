"""Compare decode speed after synthetic context fill and after a real prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sb_edge.bench.rows.row import Row
from sb_edge.bench.speed.plan import BenchModel, BenchSettings
from sb_edge.bench.speed.run import OnRow, run
from sb_edge.util.errors import SbEdgeError
from sb_edge.util.output import json_fields


@dataclass(frozen=True)
class FillCheck:
    """Rows of a model at one depth, after a real prefill and after synthetic context fill."""

    real: Row
    synthetic: Row

    @property
    def ratio(self) -> float:
        """Median speed after synthetic context fill over that after a real prefill; 1 is ideal."""
        return self.synthetic.median_ts / self.real.median_ts

    def to_json(self) -> dict[str, Any]:
        """The ratio and both rows."""
        return json_fields(self, "ratio", "real", "synthetic")


def validate_fill(
    models: Sequence[BenchModel], settings: BenchSettings, *, on_row: OnRow | None = None
) -> list[FillCheck]:
    """Measure each model at each depth after a real prefill and after synthetic context fill.

    Raises:
        SbEdgeError: depth 0, or a model without synthetic context fill.
    """
    checks = []
    for model in models:
        for depth in settings.depths:
            here = replace(settings, depths=(depth,))
            (real,) = run([model], replace(here, fill="real"), on_row=on_row)
            (synthetic,) = run([model], replace(here, fill="synthetic"), on_row=on_row)
            if synthetic.fill != "synthetic":
                raise SbEdgeError("has no synthetic context fill to compare", path=model.path)
            checks.append(FillCheck(real, synthetic))
    return checks
