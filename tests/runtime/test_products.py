"""The engine's products of one token, exactly: whole numbers that the types hold; no sum is rounded."""

from __future__ import annotations

import numpy as np
import pytest

from sb_edge.runtime.products import Products, integer_weights

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize(
    "n_outputs, n_inputs, n_threads", [(32, 32, 1), (96, 64, 1), (64, 1536, 2), (2048, 96, 3)]
)
def test_dense_products_are_exact(kind: str, n_outputs: int, n_inputs: int, n_threads: int) -> None:
    weights = integer_weights(kind, n_outputs, n_inputs)
    rng = np.random.default_rng(n_inputs)
    drawn = rng.integers(-127, 128, n_inputs).astype(np.float32)
    drawn[::32] = 127  # a block of activations is then rounded with a scale of 1
    everywhere = np.full(n_inputs, 127, np.float32)
    alternating = np.where(np.arange(n_inputs) % 2, everywhere, -everywhere)
    with Products(kind, n_outputs, n_inputs, 2, n_threads) as products:
        for x in (drawn, everywhere, -everywhere, alternating, np.zeros(n_inputs, np.float32)):
            products.set_input(x)
            products.nanoseconds(is_sparse=False)
            np.testing.assert_array_equal(products.output(is_sparse=False), weights @ x)
