"""The engine's counters against the same statistics in numpy, from the counts that it codes."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from spike_oracle import count

from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.session import Model, Session
from sb_edge.runtime.spike_counters import SiteCounts, code_rows, count_spikes, count_synthetic, record_counts

pytestmark = pytest.mark.engine


def require_equal(found: SiteCounts, expected: SiteCounts) -> None:
    for field in fields(SiteCounts):
        here, there = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "threshold_sum":
            assert here == pytest.approx(there, rel=1e-6)
        else:
            assert np.array_equal(here, there), f"layer {found.layer} {found.projections} {field.name}"


@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (63, 60), (7, 4099), (300, 32)])
def test_counters_of_given_rows(tokens: int, channels: int) -> None:
    x = np.random.default_rng(tokens).standard_t(1.2, (tokens, channels)).astype(np.float32)
    x[0] = 0
    coded = code_rows(x, 3)
    expected = count(
        coded.counts, layer=-1, projections=("synthetic",), threshold_sum=float(coded.thresholds.sum())
    )
    require_equal(count_synthetic(x, 3), expected)


def test_counters_of_a_model() -> None:
    with Model(resolve_gguf("default"), spikes=3) as model:
        tokens = model.tokenize("The lighthouse keeper climbed the stairs every night to light the lamp.")
        with Session(model, n_ctx=64) as session, count_spikes(model) as counters:
            session.evaluate(tokens, all_logits=True)
            sites = counters.sites()
        recorded = record_counts(model, tokens)
    assert [(site.layer, site.projections[0]) for site in sites[:5]] == [
        (0, "attn_q"), (0, "attn_output"), (0, "ffn_gate"), (0, "ffn_down"), (1, "attn_q"),
    ]  # fmt: skip
    for site in sites:
        for projection in site.projections:
            found = recorded[site.layer, projection]
            expected = count(
                found.counts,
                layer=site.layer,
                projections=site.projections,
                k=found.k,
                threshold_sum=float(found.thresholds.sum()),
            )
            require_equal(site, expected)
