"""Counts, thresholds and trains: the report's table row by row, on NumPy and PyTorch alike."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sb_edge.arch.coding import (
    MAX_THRESHOLD,
    MIN_THRESHOLD,
    Coding,
    decode,
    encode,
    int8_round,
    spike_counts,
    steps,
    threshold,
)
from sb_edge.util.errors import SpikeError

UNARY = (Coding.BINARY, Coding.TERNARY)
UNSIGNED = (Coding.BINARY, Coding.BITWISE)
WITH_MINUS_ONE = (Coding.TERNARY, Coding.BIDIRECTIONAL)
LARGEST = {coding: 300 if coding in UNARY else 2**31 - 1 for coding in Coding}
"""A unary train is as long as its largest count."""

BOTH = [pytest.param(lambda x: x, id="numpy"), pytest.param(torch.from_numpy, id="torch")]
Library = Callable[[np.ndarray], Any]

reals = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=9),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


def counts_of(coding: Coding) -> st.SearchStrategy[np.ndarray]:
    low = 0 if coding in UNSIGNED else -LARGEST[coding]
    shapes = array_shapes(min_dims=0, max_dims=3, max_side=5)
    return arrays(np.int32, shapes, elements=st.integers(low, LARGEST[coding]))


@pytest.mark.parametrize("coding", Coding)
@given(data=st.data(), spare=st.integers(0, 70))
def test_decoding_gives_back_what_was_encoded(coding: Coding, data: st.DataObject, spare: int) -> None:
    counts = data.draw(counts_of(coding))
    largest = int(np.abs(counts.astype(np.int64)).max())
    for n_steps in (None, steps(coding, largest) + spare):
        train = encode(counts, coding, n_steps)
        assert train.dtype == np.int8
        assert train.shape == (n_steps or steps(coding, largest), *counts.shape)
        assert set(np.unique(train)) <= ({-1, 0, 1} if coding in WITH_MINUS_ONE else {0, 1})
        found = decode(train, coding)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, counts)


@pytest.mark.parametrize("coding", Coding)
@given(data=st.data())
def test_torch_encodes_and_decodes_as_numpy_does(coding: Coding, data: st.DataObject) -> None:
    counts = data.draw(counts_of(coding))
    train = encode(torch.from_numpy(counts), coding)
    assert train.dtype == torch.int8
    np.testing.assert_array_equal(train.numpy(), encode(counts, coding))
    assert decode(train, coding).dtype == torch.int32
    np.testing.assert_array_equal(decode(train, coding).numpy(), counts)


@given(x=reals, k=st.floats(0.01, 1000))
def test_torch_counts_as_numpy_does(x: np.ndarray, k: float) -> None:
    for ours, theirs in zip(spike_counts(x, k), spike_counts(torch.from_numpy(x), k), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy(), strict=True)
    np.testing.assert_array_equal(int8_round(x), int8_round(torch.from_numpy(x)).numpy(), strict=True)


@given(x=reals, k=st.floats(0.01, 1000))
def test_counts_are_the_nearest_whole_numbers_of_thresholds(x: np.ndarray, k: float) -> None:
    counts, step = spike_counts(x, k)
    assert (counts.dtype, step.dtype) == (np.int32, np.float32)
    assert (counts.shape, step.shape) == (x.shape, (*x.shape[:-1], 1))
    exact = x.astype(np.float64) / step
    assert np.all(np.abs(exact - counts) <= 0.5 + 1e-7 * np.abs(exact))
    assert np.all((step >= np.float32(MIN_THRESHOLD)) & (step <= np.float32(MAX_THRESHOLD)))


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 4, 7, 8, 127, 128, 2**15 - 1, 2**15, 20_000, 2**31 - 1])
def test_steps_are_the_tables(largest: int) -> None:
    bits = math.ceil(math.log2(largest + 1))
    assert steps(Coding.BINARY, largest) == steps(Coding.TERNARY, largest) == largest
    assert steps(Coding.BITWISE, largest) == steps(Coding.BIDIRECTIONAL, largest) == bits
    assert steps(Coding.TWOS_COMPLEMENT, largest) == max(2, bits + 1)


@pytest.mark.parametrize(
    ("coding", "counts", "train"),
    [
        (Coding.BINARY, [0, 1, 3], [[0, 1, 1], [0, 0, 1], [0, 0, 1]]),
        (Coding.TERNARY, [0, -1, 2], [[0, -1, 1], [0, 0, 1]]),
        (Coding.BITWISE, [6, 1, 0], [[1, 0, 0], [1, 0, 0], [0, 1, 0]]),
        (Coding.BIDIRECTIONAL, [-6, 1, 5], [[-1, 0, 1], [-1, 0, 0], [0, 1, 1]]),
        (Coding.TWOS_COMPLEMENT, [-3, 3, -1], [[1, 0, 1], [0, 1, 1], [1, 1, 1]]),
        (Coding.TWOS_COMPLEMENT, [0, 0], [[0, 0], [0, 0]]),
    ],
)
@pytest.mark.parametrize("library", BOTH)
def test_trains_are_the_tables(
    library: Library, coding: Coding, counts: list[int], train: list[list[int]]
) -> None:
    found = encode(library(np.array(counts, np.int32)), coding)
    np.testing.assert_array_equal(found, train)


@pytest.mark.parametrize("coding", Coding)
@pytest.mark.parametrize("library", BOTH)
def test_nothing_and_silence_have_trains(library: Library, coding: Coding) -> None:
    for shape in ((0, 3), (2, 3)):
        zeros = library(np.zeros(shape, np.int32))
        train = encode(zeros, coding)
        assert tuple(train.shape) == (steps(coding, 0), *shape)
        np.testing.assert_array_equal(decode(train, coding), zeros)


@pytest.mark.parametrize("coding", Coding)
def test_bursts_keep_every_spike(coding: Coding) -> None:
    counts = np.array([20_000, 0, 1, 19_999, 129] if coding in UNARY else [70_000, 40_000, 0, 1], np.int32)
    signed = counts if coding in UNSIGNED else counts * np.array([-1, 1] * 3, np.int32)[: len(counts)]
    train = encode(signed, coding)
    np.testing.assert_array_equal(decode(train, coding), signed)
    if coding in UNARY:
        np.testing.assert_array_equal(np.abs(train).sum(axis=0), counts)


@pytest.mark.parametrize("library", BOTH)
def test_halves_round_to_even(library: Library) -> None:
    values = np.array([[0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5, 4.0, 0.0]], np.float32)
    assert np.abs(values).mean() == 2
    counts, step = spike_counts(library(values), 2.0)
    assert float(step[0, 0]) == 1
    assert counts[0].tolist() == [0, 2, 2, 4, 0, -2, -2, -4, 4, 0]


@pytest.mark.parametrize("library", BOTH)
def test_the_threshold_is_clamped_at_both_ends(library: Library) -> None:
    low = library(np.array([[0, 0], [1e-6, -1e-6], [2e-5, -2e-5]], np.float32))
    counts, step = spike_counts(low, 1.0)
    np.testing.assert_array_equal(step, np.array([[1e-5], [1e-5], [2e-5]], np.float32))
    assert counts.tolist() == [[0, 0], [0, 0], [1, -1]]
    high = library(np.array([[1e5, -3e5], [9e3, 9e3]], np.float32))
    counts, step = spike_counts(high, 1.0)
    np.testing.assert_array_equal(step, np.array([[1e4], [9e3]], np.float32))
    assert counts.tolist() == [[10, -30], [1, 1]]


@pytest.mark.parametrize("library", BOTH)
def test_one_loud_channel_bursts_and_the_others_fall_silent(library: Library) -> None:
    row = np.full(20_000, 1e-3, np.float32)
    row[7] = -1e3
    counts, _ = spike_counts(library(row), 3.0)
    assert int(counts[7]) == round(-1e3 / (np.abs(row.astype(np.float64)).mean() / 3))
    assert int(counts[7]) < -(2**15)
    assert int(abs(counts).sum()) == -int(counts[7])


def test_the_mean_is_taken_in_float64() -> None:
    row = np.full(2**25 + 1, 1.0, np.float32)  # a running float32 sum stops at 2^24
    assert float(threshold(row, 1.0)[0]) == 1.0


def test_float64_keeps_its_digits() -> None:
    just_above = np.array([1.5 + 1e-12, 0.5], np.float64)
    assert spike_counts(just_above, 1.0)[0].tolist() == [2, 0]
    assert int8_round(just_above).dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_are_coded_in_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(-4, 4, 63).to(dtype)
    counts, step = spike_counts(x, 3.0)
    wide_counts, wide_step = spike_counts(x.float(), 3.0)
    assert torch.equal(counts, wide_counts)
    assert torch.equal(step, wide_step)
    assert torch.equal(int8_round(x), int8_round(x.float()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_stay_on_their_device() -> None:
    counts, step = spike_counts(torch.linspace(-4, 4, 63, device="cuda"), 3.0)
    assert counts.is_cuda
    assert step.is_cuda
    for coding in (Coding.TERNARY, Coding.BIDIRECTIONAL, Coding.TWOS_COMPLEMENT):
        train = encode(counts, coding)
        assert train.is_cuda
        assert torch.equal(decode(train, coding), counts)


@pytest.mark.parametrize("library", BOTH)
def test_int8_rounding_has_127_steps_to_the_largest(library: Library) -> None:
    x = library(np.array([[127.0, 0.5, 1.5, -2.5, -126.6], [0, 0, 0, 0, 0], [1e-4, 0, 0, 0, 0]], np.float32))
    found = int8_round(x)
    np.testing.assert_array_equal(found[0], [127, 0, 2, -2, -127])
    np.testing.assert_array_equal(found[1], np.zeros(5))
    np.testing.assert_array_equal(found[2], np.array([10 * np.float32(1e-5), 0, 0, 0, 0]))


@pytest.mark.parametrize("k", [0.0, -3.0, math.nan, math.inf])
def test_a_bad_k_is_refused(k: float) -> None:
    with pytest.raises(SpikeError, match=rf"k: must be a positive number \(found {k}\)"):
        threshold(np.ones(4, np.float32), k)
    with pytest.raises(SpikeError, match="k: must be a positive number"):
        spike_counts(np.ones(4, np.float32), k)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("library", BOTH)
def test_counts_that_are_no_int32_are_refused(library: Library, value: float) -> None:
    with pytest.raises(SpikeError, match="a count: is NaN, infinite or beyond int32"):
        spike_counts(library(np.array([[1.0, value], [1.0, 1.0]], np.float32)), 3.0)


@pytest.mark.parametrize("coding", UNSIGNED)
def test_unsigned_codings_refuse_negative_counts(coding: Coding) -> None:
    with pytest.raises(SpikeError, match=rf"{coding}: carries no negative counts \(found -2\)"):
        encode(np.array([3, -2], np.int32), coding)


@pytest.mark.parametrize(
    ("coding", "most"), [(coding, 5 if coding in UNARY else 31) for coding in Coding if "two" not in coding]
)
@pytest.mark.parametrize("library", BOTH)
def test_counts_beyond_the_steps_are_refused(library: Library, coding: Coding, most: int) -> None:
    encode(library(np.array([most], np.int32)), coding, 5)
    with pytest.raises(SpikeError, match=rf"does not fit 5 time steps \(found {most + 1}"):
        encode(library(np.array([0, most + 1], np.int32)), coding, 5)


def test_twos_complement_reaches_one_further_down() -> None:
    counts = np.array([-16, 15], np.int32)
    np.testing.assert_array_equal(
        decode(encode(counts, Coding.TWOS_COMPLEMENT, 5), Coding.TWOS_COMPLEMENT), counts
    )
    for count in (-17, 16):
        with pytest.raises(SpikeError, match=rf"found {count}, expected -16 to 15"):
            encode(np.array([count], np.int32), Coding.TWOS_COMPLEMENT, 5)


@pytest.mark.parametrize(("coding", "n_steps"), [(Coding.BITWISE, -1), (Coding.TWOS_COMPLEMENT, 1)])
def test_too_few_steps_are_refused(coding: Coding, n_steps: int) -> None:
    with pytest.raises(SpikeError, match="too few time steps"):
        encode(np.zeros(2, np.int32), coding, n_steps)


def test_a_negative_largest_count_is_refused() -> None:
    with pytest.raises(SpikeError, match="largest: cannot be negative"):
        steps(Coding.BITWISE, -1)


@pytest.mark.parametrize(
    ("coding", "train", "message"),
    [
        (
            Coding.BINARY,
            [[0], [-1]],
            r"binary: not a spike train \(found values from -1 to 0, expected 0 to 1",
        ),
        (Coding.BITWISE, [[2]], "bitwise: not a spike train"),
        (Coding.TERNARY, [[-2], [1]], "ternary: not a spike train"),
        (Coding.TWOS_COMPLEMENT, [[1]], "too few time steps"),
        (Coding.BITWISE, [[1]] * 32, "beyond int32"),
    ],
)
def test_what_is_no_train_is_refused(coding: Coding, train: list[list[int]], message: str) -> None:
    with pytest.raises(SpikeError, match=message):
        decode(np.array(train, np.int8), coding)


def test_numpy_alone_needs_no_pytorch() -> None:
    program = """
import sys
import numpy as np
from sb_edge.arch.coding import Coding, decode, encode, int8_round, spike_counts
x = np.ones(4, np.float32)
decode(encode(spike_counts(x, 3)[0], Coding.TERNARY), Coding.TERNARY)
int8_round(x)
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.engine
@pytest.mark.parametrize("channels", [31, 63, 128, 576, 3584])
def test_the_engine_codes_alike(channels: int) -> None:
    from sb_edge.runtime.spike_counters import code_rows

    draw = np.random.default_rng(channels)
    for k in (0.5, 2.7, 3.0, 1000.0):
        rows = draw.standard_t(1.5, size=(40, channels)) * 10.0 ** draw.integers(-8, 7, (40, 1))
        rows[::4, 7] *= 1000  # bursts
        counts, step = spike_counts(rows.astype(np.float32), k)
        found = code_rows(rows.astype(np.float32), k)
        np.testing.assert_array_equal(found.counts, counts)
        np.testing.assert_array_equal(found.thresholds, step[:, 0])
