"""Whether the synthetic fill gives the decode speed of a real prefill, where both are affordable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sb_edge.bench.rows.row import Row
from sb_edge.bench.speed.plan import BenchModel, BenchSettings
from sb_edge.bench.speed.run import OnRow, run
from sb_edge.util.errors import SbEdgeError


@dataclass(frozen=True)
class FillCheck:
    """The same model at the same depth, filled for real and synthetically."""

    real: Row
    synthetic: Row

    @property
    def ratio(self) -> float:
        """Median speed after a synthetic fill over that after a real prefill; 1: the fill is fair."""
        return self.synthetic.median_ts / self.real.median_ts

    def to_json(self) -> dict[str, Any]:
        """Both rows and the ratio."""
        return {"ratio": self.ratio, "real": self.real.to_json(), "synthetic": self.synthetic.to_json()}


def validate_fill(
    models: Sequence[BenchModel], settings: BenchSettings, *, on_row: OnRow | None = None
) -> list[FillCheck]:
    """Measure each model at each depth after a real prefill and after a synthetic fill, one after the other.

    Raises:
        SbEdgeError: a model that is always prefilled for real, or depth 0: there is nothing to compare.
    """
    checks = []
    for model in models:
        for depth in settings.depths:
            here = replace(settings, depths=(depth,))
            (real,) = run([model], replace(here, fill="real"), on_row=on_row)
            (synthetic,) = run([model], replace(here, fill="synthetic"), on_row=on_row)
            if synthetic.fill != "synthetic":
                raise SbEdgeError(
                    "is always filled for real, so there is nothing to compare", path=model.path
                )
            checks.append(FillCheck(real, synthetic))
    return checks
