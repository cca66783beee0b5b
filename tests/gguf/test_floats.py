from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb_edge.gguf.floats import encoder, is_finite, to_float32

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_is_finite_agrees_with_numpy(dtype, bits):
    integer = np.uint32 if dtype is np.float32 else np.uint16
    values = np.array(bits, np.uint32).astype(integer).view(dtype)
    assert is_finite(values) == bool(np.isfinite(values.astype(np.float32)).all())
    assert is_finite(values, np.empty(4096, np.uint8)) == is_finite(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_bad_value_is_found_anywhere(dtype, bad):
    for place in (0, 1, 499, 998):
        values = np.zeros(999, dtype)
        values[place] = bad
        assert not is_finite(values)
    assert is_finite(np.zeros(0, dtype))
    assert is_finite(np.array([ml_dtypes.finfo(dtype).max, -ml_dtypes.finfo(dtype).max], dtype))


@given(hnp.arrays(np.float32, 64, elements=st.floats(-60000, 60000, width=32)))
def test_casts_round_like_numpy_and_ml_dtypes(values):
    for kind, dtype in (("f32", np.float32), ("f16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        np.testing.assert_array_equal(encoder(kind)(values), values.astype(dtype).view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_every_pair_of_types(dtype, kind):
    target = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[kind]
    values = np.random.default_rng(0).normal(size=1000).astype(dtype)
    expected = values.astype(np.float32).astype(target)
    np.testing.assert_array_equal(encoder(kind)(values), expected.view(np.uint8))
    np.testing.assert_array_equal(to_float32(values), values.astype(np.float32))


def test_values_beyond_the_range_are_reported():
    assert encoder("f16")(np.array([70000], np.float32)) is None
    assert encoder("f16")(np.array([1e38], ml_dtypes.bfloat16)) is None
    assert encoder("bf16")(np.array([np.finfo(np.float32).max])) is None
    assert encoder("q8_0")(np.full(32, 1e9, np.float32)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_q8_0_is_within_half_a_step(dtype):
    values = np.random.default_rng(1).normal(size=320).astype(dtype)
    encoded = encoder("q8_0")(values).reshape(10, 34)
    back = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType.Q8_0).reshape(-1)
    wide = values.astype(np.float32)
    step = np.repeat(np.abs(wide.reshape(-1, 32)).max(1) / 127, 32)
    # half a step of the int8, and the float16 scale's own rounding
    assert (np.abs(back - wide) <= (0.5 * step + np.abs(wide) * 2**-11 + 1e-7) * 1.001).all()


@pytest.mark.parametrize("size", [1, 1e-3, 1e-7, 1e-20, 1e-30, 1e4])
def test_q8_0_is_gguf_s(size):
    values = np.random.default_rng(2).normal(0, size, 32 * 1000).astype(np.float32)
    values[:32] = 0
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(encoder("q8_0")(values), expected)


def test_q8_0_rounds_ties_away_from_zero():
    """With 127 in every block the scale is 1; the others are halves and their neighbours."""
    halves = np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)
    values = np.concatenate([halves, np.nextafter(halves, -200), np.nextafter(halves, 200)])
    blocks = np.full((len(values), 32), 127, np.float32)
    blocks[:, 1] = values
    encoded = encoder("q8_0")(blocks.reshape(-1)).reshape(-1, 34)
    exact = values.astype(np.float64)
    expected = np.sign(exact) * np.floor(np.abs(exact) + 0.5)
    np.testing.assert_array_equal(encoded[:, 3].view(np.int8), expected)
