"""Integer weights of W8ASpike: one scale per group of 128 inputs, one code per weight.

The release stores floats and rounds them at run time in float32: `round(w / scale) * scale`, half to even,
not clipped. This module computes the codes `round(w / scale)` in the same way. It stores them unchanged in
Q8_0 blocks, or as products with their scale in a floating-point type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QType

from sb_edge.arch.tensors import SCALE_GROUP, TensorSpec
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.gguf.floats import Encoder, encoder, is_finite, to_float32

LARGEST_CODE = 127
_BLOCK, _BLOCK_BYTES = gguf.GGML_QUANT_SIZES[QType.Q8_0]
_HALF_ZERO = 2.0**-25  # float16 rounds this and smaller values to zero
_HALF_INFINITY = 65520.0  # float16 rounds this and larger values to infinity


@dataclass(frozen=True)
class CodesReport:
    """Statistics of the stored integer codes of a W8ASpike checkpoint.

    Attributes:
        codes: number of weights that the release rounds to integers.
        exact_codes: number of codes stored unchanged; 0 in a floating-point type.
        beyond_int8: number of codes beyond ±127 by GGUF name, for tensors with such codes.
        requantized_blocks: number of Q8_0 blocks of 32 with such a code; they have a larger scale and new
            codes.
        scale_error: maximum relative difference between a scale and its half-precision value; 0 in a
            floating-point type.
    """

    codes: int
    exact_codes: int
    beyond_int8: Mapping[str, int]
    requantized_blocks: int
    scale_error: float


class CodeStore:
    """Encodes rounded weights and collects statistics of their codes."""

    def __init__(self) -> None:
        self._codes = 0
        self._exact = 0
        self._beyond: Counter[str] = Counter()
        self._requantized = 0
        self._scale_error = 0.0

    def report(self) -> CodesReport:
        """The statistics so far."""
        return CodesReport(self._codes, self._exact, dict(self._beyond), self._requantized, self._scale_error)

    def encoder(self, name: str, qtype: QType, scales: np.ndarray) -> Encoder:
        """Return a function that encodes consecutive chunks of a tensor's weights as bytes (uint8).

        Chunks have a multiple of 128 weights. As with `floats.encoder`, the function returns None if a value
        exceeds the range of the type.

        Args:
            name: name of the tensor in the GGUF.
            qtype: Q8_0 or a floating-point type.
            scales: [n / 128], any float type, positive, for the n weights of the tensor.
        """
        to_bytes = None if qtype == QType.Q8_0 else encoder(qtype.name.lower())
        done = 0

        def encode(weights: np.ndarray) -> np.ndarray | None:
            nonlocal done
            groups = weights.size // SCALE_GROUP
            steps = to_float32(scales[done : done + groups])[:, None]
            done += groups
            codes = integer_codes(weights, steps)
            wide = self._count(name, codes)
            if to_bytes is None:
                return self._q8_0(codes, steps, wide)
            with np.errstate(over="ignore"):
                values = np.multiply(codes, steps, out=codes).reshape(-1)
            return to_bytes(values) if is_finite(values) else None

        return encode

    def _count(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Count codes and codes beyond INT8; return the indices of blocks with codes beyond INT8."""
        self._codes += codes.size
        if max(codes.max(), -codes.min()) <= LARGEST_CODE:
            return np.empty(0, np.intp)
        in_block = np.count_nonzero(np.abs(codes.reshape(-1, _BLOCK)) > LARGEST_CODE, axis=1)
        self._beyond[name] += int(in_block.sum())
        return np.flatnonzero(in_block)

    def _q8_0(self, codes: np.ndarray, steps: np.ndarray, wide: np.ndarray) -> np.ndarray | None:
        """Encode [groups, 128] codes and [groups, 1] scales as blocks; four blocks share the scale of a
        group."""
        halves = steps.astype(np.float16)
        self._scale_error = max(self._scale_error, float(np.max(np.abs(halves / steps - 1))))
        blocks = np.empty((codes.size // _BLOCK, _BLOCK_BYTES), np.uint8)
        blocks[:, :2] = np.repeat(halves.view(np.uint8), SCALE_GROUP // _BLOCK, axis=0)
        with np.errstate(invalid="ignore"):  # wide blocks overflow and are replaced below
            blocks[:, 2:] = codes.astype(np.int8).view(np.uint8).reshape(-1, _BLOCK)
        if wide.size:
            with np.errstate(over="ignore"):
                values = (codes * steps).reshape(-1, _BLOCK)[wide]
            requantized = _requantize(values)
            if requantized is None:
                return None
            blocks[wide] = requantized
        self._requantized += wide.size
        self._exact += codes.size - wide.size * _BLOCK
        return blocks.reshape(-1)


def integer_codes(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """round(w / scale), half to even, not clipped; float32 [groups, 128].

    Args:
        weights: [groups * 128].
        scales: [groups, 1] float32, positive.
    """
    with np.errstate(over="ignore"):
        codes = to_float32(weights).reshape(-1, SCALE_GROUP) / scales
    return np.rint(codes, out=codes)


def _requantize(values: np.ndarray) -> np.ndarray | None:
    """Quantize [n, 32] float32 values to Q8_0 with scales rounded up, so that no code exceeds INT8."""
    with np.errstate(over="ignore"):
        exact = np.abs(values).max(axis=1, keepdims=True) / np.float32(LARGEST_CODE)
        scales = exact.astype(np.float16)
        scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    if not np.isfinite(scales).all():
        return None
    codes = np.rint(values / scales.astype(np.float32)).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1)


def check_scales(source: Checkpoint, table: Mapping[str, TensorSpec], *, half_precision: bool) -> None:
    """Refuse scales that are not positive numbers, before anything is written.

    Args:
        source: the checkpoint.
        table: table of its tensors.
        half_precision: also refuse used scales that are zero or infinite in float16.

    Raises:
        CheckpointError: a scale is refused; names the first one.
    """
    used = {spec.scales for spec in table.values()}
    for name in (name for name, spec in table.items() if not spec.gguf_name):
        done = 0
        for chunk in source.chunks(name):
            scales = to_float32(chunk)
            _require(source, name, done, scales, (scales > 0) & (scales < np.inf), "is not a positive number")
            if half_precision and name in used:
                fits = (scales > _HALF_ZERO) & (scales < _HALF_INFINITY)
                hint = "Q8_0 stores scales as float16: use --outtype bf16 or f32"
                _require(source, name, done, scales, fits, "is outside the range of float16", hint)
            done += scales.size


def _require(
    source: Checkpoint,
    name: str,
    start: int,
    scales: np.ndarray,
    good: np.ndarray,
    message: str,
    hint: str = "fetch the checkpoint again",
) -> None:
    if good.all():
        return
    first = int(np.argmin(good))
    raise source.value_error(name, start + first, scales[first], f"a scale {message}", hint)
