"""Speed of the sparse product over the dense one by share of silent channels, on random weights."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sb_edge.bench.rows.ratios import Ratio, speed_ratio
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.runtime.products import ACTIVE, SILENT, Products
from sb_edge.system.cpu import default_threads, fast_cpus, kept_on
from sb_edge.util.errors import ParityError
from sb_edge.util.logits import nmse
from sb_edge.util.progress import progress_bar
from sb_edge.util.tolerances import SPARSE_PRODUCT

SHAPES = ((576, 1536), (2048, 8192))
"""Outputs and inputs of ffn_down in the default model and in preset 1b."""

TYPES = ("Q4_0", "Q8_0")
SHARES = tuple(tenth / 10 for tenth in range(10))

WORKING_BYTES = 128 << 20
"""Weights read per timing, bytes; more than a processor's caches."""


@dataclass(frozen=True)
class CurvePoint:
    """Speeds at one share of silent channels.

    Attributes:
        silent: share of silent channels, 0 to 1.
        ratio: speed of the sparse product over the dense one.
        dense_ns, sparse_ns: median time of one product, nanoseconds.
    """

    silent: float
    ratio: Ratio
    dense_ns: float
    sparse_ns: float


@dataclass(frozen=True)
class SparseCurve:
    """Speeds for one shape and type of weights.

    Attributes:
        type: type of the weights in both layouts.
        n_outputs, n_inputs: shape of the matrix.
        n_threads: number of threads.
        points: one per share of silent channels, ascending.
    """

    type: str
    n_outputs: int
    n_inputs: int
    n_threads: int
    points: tuple[CurvePoint, ...]

    @property
    def label(self) -> str:
        """For example "Q4_0, 2048 x 8192"."""
        return f"{self.type}, {self.n_outputs} x {self.n_inputs}"


def measure_curves(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    *,
    repetitions: int = 10,
    n_threads: int | None = None,
    working_bytes: int = WORKING_BYTES,
) -> list[SparseCurve]:
    """Time both products interleaved.

    The dense product uses the engine's weight layout. The sparse product never falls back to the dense one.

    Args:
        shapes: outputs and inputs, multiples of 32.
        repetitions: number of pairs; the order alternates.
        n_threads: None: `default_threads`.
        working_bytes: weights read per timing, bytes.

    Raises:
        ParityError: the products differ by more than rounding.
        InferenceError: the engine has no sparse products.
    """
    threads = n_threads or default_threads()
    cases = [(kind, shape) for shape in shapes for kind in TYPES]
    with (
        progress_bar("sparse products", len(cases) * len(SHARES)) as advance,
        kept_on(fast_cpus(threads)),
    ):
        curves = []
        for kind, (n_outputs, n_inputs) in cases:
            block, size = BLOCK_SIZES[kind]
            copies = max(working_bytes // (n_outputs * n_inputs // block * size), 1)
            with Products(kind, n_outputs, n_inputs, copies, threads) as products:
                points = []
                for share in SHARES:
                    points.append(_measure(products, share, copies, repetitions))
                    advance(1)
            curves.append(SparseCurve(kind, n_outputs, n_inputs, threads, tuple(points)))
    return curves


def _measure(products: Products, share: float, copies: int, repetitions: int) -> CurvePoint:
    x, silenced = _input(products.shape[1], share)
    products.set_input(silenced)
    products.nanoseconds(is_sparse=False)
    expected = products.output(is_sparse=False)
    products.set_input(x)
    products.nanoseconds(is_sparse=True)
    difference = nmse(expected[None], products.output(is_sparse=True)[None])
    if difference > SPARSE_PRODUCT.nmse:
        raise ParityError(
            "the sparse product differs from the dense product without silent channels",
            item=f"{share:.0%} silent",
            found=f"NMSE {difference:.2g}",
            expected=f"at most {SPARSE_PRODUCT.nmse:g}",
        )
    samples: dict[bool, list[float]] = {False: [], True: []}
    order = [False, True]
    for _ in range(repetitions):
        for is_sparse in order:
            samples[is_sparse].append(products.nanoseconds(is_sparse=is_sparse) / copies)
        order.reverse()
    ratio = speed_ratio([1 / ns for ns in samples[True]], [1 / ns for ns in samples[False]], paired=True)
    return CurvePoint(share, ratio, statistics.median(samples[False]), statistics.median(samples[True]))


def _input(n: int, share: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A vector [n] with this share of silent entries at random positions, and a copy with these set to 0."""
    rng = np.random.default_rng(round(100 * share))
    silent = rng.permutation(n) < round(share * n)
    signs = rng.choice(np.array([-1, 1], np.float32), n)
    x = (signs * np.where(silent, SILENT, ACTIVE)).astype(np.float32)
    return x, np.where(silent, np.float32(0), x)
