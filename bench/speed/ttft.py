"""Fit of a Transformer's time to the first token at depths where a real prefill would take hours.

The time per prompt token is linear in its position: projections cost the same for every token, attention
costs a time per previous position. Both are fitted to chunks measured at several depths; the integral over
the prompt's tokens is the time to the first token. Such rows are marked as fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.timing import NS_PER_SECOND, Timing
from sb_edge.bench.speed.available_memory import context_forecast
from sb_edge.bench.speed.measure import utc_now
from sb_edge.bench.speed.plan import Case
from sb_edge.util.errors import SbEdgeError


@dataclass(frozen=True)
class CostFit:
    """ns(position) = base_ns + slope_ns * position for one token of a prompt.

    Attributes:
        depths: depths of the fitted chunks, ascending.
        base_ns: time of a token at position 0, nanoseconds.
        slope_ns: additional time per previous position, nanoseconds.
        residual: largest relative difference between a chunk and the fit.
    """

    depths: tuple[int, ...]
    base_ns: float
    slope_ns: float
    residual: float

    def chunk_ns(self, depth: int, n_tokens: int) -> float:
        """Time of a chunk of `n_tokens` after `depth` tokens, nanoseconds."""
        return n_tokens * (self.base_ns + self.slope_ns * (depth + n_tokens / 2))

    def prompt_ns(self, n_tokens: int) -> float:
        """Time of a whole prompt, nanoseconds: the integral over its tokens."""
        return self.chunk_ns(0, n_tokens)


def fit_cost(rows: Sequence[Row]) -> CostFit:
    """Fit the time per token to measured chunks, weighted by the inverse of their times.

    Both coefficients are non-negative.

    Raises:
        SbEdgeError: fewer than two depths.
    """
    from scipy.optimize import nnls

    by_depth = {row.n_depth: row for row in rows if row.fill != "fitted"}
    chunks = [by_depth[depth] for depth in sorted(by_depth)]
    if len(chunks) < 2:
        raise SbEdgeError("a fit over depth needs at least two measured depths", found=len(chunks))
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
    """Add a fitted time to the first token to the row of a prompt without a real prefill.

    Args:
        row: measured after synthetic context fill.
        series: rows of the same model and settings at smaller depths.
    """
    return _with_fit(row, fit_cost([*series, row]))


def fitted_row(case: Case, series: Sequence[Row]) -> Row:
    """The row of a case that is not measured.

    Args:
        case: the case.
        series: rows of the same model and settings at smaller depths.
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
            **asdict(Timing((), (), chunk_ns, 0, speed, 0.0, speed)),
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
