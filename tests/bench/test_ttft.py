from __future__ import annotations

from collections.abc import Callable

import pytest

from sb_edge.bench.rows.row import Row
from sb_edge.bench.speed.ttft import fit_cost, with_fitted_ttft
from sb_edge.util.errors import SbEdgeError

MakeRow = Callable[..., Row]


def chunk(make_row: MakeRow, depth: int, base: float, slope: float, fill: str = "synthetic") -> Row:
    """A chunk of 512 tokens whose cost is exactly linear: base + slope * position, ns a token."""
    cost = base + slope * (depth + 256)
    return make_row(n_prompt=512, n_gen=0, n_depth=depth, fill=fill, median_ts=1e9 / cost)


def test_an_exact_cost_is_found_and_integrated(make_row: MakeRow) -> None:
    chunks = [chunk(make_row, depth, 2e6, 30.0) for depth in (0, 1024, 4096, 65536)]
    fit = fit_cost(chunks)
    assert fit.depths == (0, 1024, 4096, 65536)
    assert fit.base_ns == pytest.approx(2e6)
    assert fit.slope_ns == pytest.approx(30.0)
    assert fit.residual < 1e-6
    by_token = sum(2e6 + 30.0 * (position + 0.5) for position in range(10000))
    assert fit.prompt_ns(10000) == pytest.approx(by_token)
    assert fit.chunk_ns(1024, 512) == pytest.approx(512 * 1e9 / chunks[1].median_ts)


def test_the_row_says_that_it_is_fitted(make_row: MakeRow) -> None:
    shallow = [chunk(make_row, depth, 2e6, 30.0, "real") for depth in (0, 4096)]
    row = with_fitted_ttft(chunk(make_row, 65536, 2e6, 30.0), shallow)
    assert (row.ttft_source, row.fill) == ("fitted", "synthetic")
    assert row.ttft_ns == pytest.approx(2e6 * 65536 + 30.0 * 65536**2 / 2)
    assert row.fit_depths == (0, 4096, 65536)
    assert Row.model_validate_json(row.model_dump_json()) == row


def test_noise_gives_no_negative_cost(make_row: MakeRow) -> None:
    fit = fit_cost([chunk(make_row, 0, 3e6, 0.0), chunk(make_row, 1024, 2e6, 0.0)])
    assert fit.slope_ns == 0
    assert 2e6 < fit.base_ns < 3e6
    assert fit.residual > 0.1


def test_a_fitted_row_is_no_measurement(make_row: MakeRow) -> None:
    with pytest.raises(SbEdgeError, match="at least two measured depths"):
        fit_cost([chunk(make_row, 0, 2e6, 1.0), chunk(make_row, 4096, 2e6, 1.0, "fitted")])
