"""Time to the first token where prefilling a Transformer for real would take hours: fitted, and said so.

The time that one token of a prompt takes grows linearly with the tokens before it: the projections cost the
same for all, attention costs something for each position. Both are fitted to the chunks measured at several
depths; the integral over a prompt's tokens is the time to its first answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.timing import NS_PER_SECOND
from sb_edge.bench.speed.headroom import context_forecast
from sb_edge.bench.speed.measure import utc_now
from sb_edge.bench.speed.plan import Case
from sb_edge.util.errors import SbEdgeError


@dataclass(frozen=True)
class CostFit:
    """ns(position) = base_ns + slope_ns * position for one token of a prompt.

    Attributes:
        depths: of the chunks that it was fitted to, ascending.
        base_ns: nanoseconds of a token at position 0.
        slope_ns: nanoseconds more for each position before it.
        residual: the largest relative difference between a chunk and the fit.
    """

    depths: tuple[int, ...]
    base_ns: float
    slope_ns: float
    residual: float

    def chunk_ns(self, depth: int, n_tokens: int) -> float:
        """Time of a chunk of `n_tokens` after `depth` tokens."""
        return n_tokens * (self.base_ns + self.slope_ns * (depth + n_tokens / 2))

    def prompt_ns(self, n_tokens: int) -> float:
        """Time of a whole prompt: the integral over its tokens."""
        return self.chunk_ns(0, n_tokens)


def fit_cost(rows: Sequence[Row]) -> CostFit:
    """Fit the cost of a token to measured chunks, each weighted by the inverse of its cost.

    Neither part can be negative, for more work never takes less time.

    Raises:
        SbEdgeError: fewer than two depths.
    """
    from scipy.optimize import nnls

    by_depth = {row.n_depth: row for row in rows if row.fill != "fitted"}
    chunks = [by_depth[depth] for depth in sorted(by_depth)]
    if len(chunks) < 2:
        raise SbEdgeError("a fit over depth needs measurements at two depths or more", found=len(chunks))
    cost = np.array([NS_PER_SECOND / row.median_ts for row in chunks])
    middle = np.array([row.n_depth + row.n_prompt / 2 for row in chunks])
    scale = middle.max()
    weighted = np.stack([1 / cost, middle / scale / cost], axis=1)
    (base_ns, scaled_slope), _ = nnls(weighted, np.ones_like(cost))
    residual = np.abs(weighted @ np.array([base_ns, scaled_slope]) - 1).max()
    return CostFit(
        tuple(row.n_depth for row in chunks), float(base_ns), float(scaled_slope / scale), float(residual)
    )


def with_fitted_ttft(row: Row, series: Sequence[Row]) -> Row:
    """The row of a prompt that was not prefilled for real, with the time to its first token from a fit.

    Args:
        row: measured after a synthetic fill.
        series: the measurements of the same model and settings at this depth and shallower ones.
    """
    return _with_fit(row, fit_cost([*series, row]))


def fitted_row(case: Case, series: Sequence[Row]) -> Row:
    """A row for a depth at which nothing is measured.

    Args:
        case: at that depth.
        series: the measurements of the same model and settings at shallower depths.
    """
    fit = fit_cost(series)
    expected = context_forecast(case)
    chunk_ns = round(fit.chunk_ns(case.n_depth, case.settings.n_prompt))
    speed = case.settings.n_prompt * NS_PER_SECOND / chunk_ns
    row = series[-1].model_copy(
        update={
            "n_depth": case.n_depth,
            "label": case.label,
            "fill": case.fill,
            "test_time": utc_now(),
            "avg_ns": chunk_ns,
            "stddev_ns": 0,
            "avg_ts": speed,
            "stddev_ts": 0.0,
            "samples_ns": (),
            "samples_ts": (),
            "median_ts": speed,
            "turns": None,
            "kv_bytes": expected.kv,
            "state_bytes": expected.state,
            "rss_bytes": None,
            "cpu_mhz": None,
            "temperature_c": None,
            "throttle_events": None,
        }
    )
    return _with_fit(row, fit)


def _with_fit(row: Row, fit: CostFit) -> Row:
    return row.model_copy(
        update={
            "ttft_ns": round(fit.prompt_ns(row.n_depth)),
            "ttft_source": "fitted",
            "fit_depths": fit.depths,
            "fit_base_ns": fit.base_ns,
            "fit_slope_ns": fit.slope_ns,
            "fit_residual": fit.residual,
        }
    )
