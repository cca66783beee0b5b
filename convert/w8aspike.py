"""W8ASpike's integer weights: a scale for each group of 128 inputs, a code for each weight.

The release keeps floats and rounds them when it runs: `round(w / scale) * scale`, half to even and not
clipped, in float32. Here the codes `round(w / scale)` are computed in the same way, and stored as they are in
Q8_0 blocks or multiplied out in a floating-point type.
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
from sb_edge.util.errors import CheckpointError

LARGEST_CODE = 127
_BLOCK, _BLOCK_BYTES = gguf.GGML_QUANT_SIZES[QType.Q8_0]
_HALF_ZERO = 2.0**-25  # float16 rounds this, and what is smaller, to zero
_HALF_INFINITY = 65520.0  # float16 rounds this, and what is larger, to infinity


@dataclass(frozen=True)
class CodesReport:
    """How the integer codes of a W8ASpike checkpoint were stored.

    Attributes:
        codes: weights that the release rounds to integers.
        exact_codes: those stored as integers and unchanged; 0 in a floating-point type.
        beyond_int8: GGUF name to number of codes beyond ±127; only tensors that have some.
        requantized_blocks: Q8_0 blocks of 32 with such a code, which got a larger scale and other codes.
        scale_error: largest relative difference between a scale and its half-precision form; 0 in a
            floating-point type.
    """

    codes: int
    exact_codes: int
    beyond_int8: Mapping[str, int]
    requantized_blocks: int
    scale_error: float


class CodeStore:
    """Encodes rounded weights for the file and counts what that does to their codes."""

    def __init__(self) -> None:
        self._codes = 0
        self._exact = 0
        self._beyond: Counter[str] = Counter()
        self._requantized = 0
        self._scale_error = 0.0

    def report(self) -> CodesReport:
        """The counts so far."""
        return CodesReport(self._codes, self._exact, dict(self._beyond), self._requantized, self._scale_error)

    def encoder(self, name: str, qtype: QType, scales: np.ndarray) -> Encoder:
        """A function from a tensor's weights, piece by piece in order, to their bytes (uint8) in the file.

        Pieces hold multiples of 128 weights. As `floats.encoder`'s, it returns None for a value that exceeds
        the type's range.

        Args:
            name: of the tensor in the GGUF.
            qtype: Q8_0 or a floating-point type.
            scales: [n / 128], any float type, positive, for the tensor's n weights.
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
        """Count codes, and those beyond INT8; returns the numbers of the blocks that have such ones."""
        self._codes += codes.size
        if max(codes.max(), -codes.min()) <= LARGEST_CODE:
            return np.empty(0, np.intp)
        in_block = np.count_nonzero(np.abs(codes.reshape(-1, _BLOCK)) > LARGEST_CODE, axis=1)
        self._beyond[name] += int(in_block.sum())
        return np.flatnonzero(in_block)

    def _q8_0(self, codes: np.ndarray, steps: np.ndarray, wide: np.ndarray) -> np.ndarray | None:
        """[groups, 128] codes and [groups, 1] scales as blocks; four of them share a group's scale."""
        halves = steps.astype(np.float16)
        self._scale_error = max(self._scale_error, float(np.max(np.abs(halves / steps - 1))))
        blocks = np.empty((codes.size // _BLOCK, _BLOCK_BYTES), np.uint8)
        blocks[:, :2] = np.repeat(halves.view(np.uint8), SCALE_GROUP // _BLOCK, axis=0)
        with np.errstate(invalid="ignore"):  # codes of wide blocks, which are replaced below
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
    """[n, 32] float32 values as Q8_0 blocks whose scale is rounded up, so that no code exceeds INT8."""
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
        table: of its tensors.
        half_precision: also refuse used scales that float16 makes zero or infinite.

    Raises:
        CheckpointError: names the first such scale.
    """
    used = {spec.scales for spec in table.values()}
    for name in (name for name, spec in table.items() if not spec.gguf_name):
        done = 0
        for piece in source.chunks(name):
            scales = to_float32(piece)
            _require(source, name, done, scales, (scales > 0) & (scales < np.inf), "is not a positive number")
            if half_precision and name in used:
                fits = (scales > _HALF_ZERO) & (scales < _HALF_INFINITY)
                hint = "Q8_0 keeps scales in half precision: use --outtype bf16 or f32"
                _require(source, name, done, scales, fits, "is beyond half precision", hint)
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
    info = source.info(name)
    place = ", ".join(str(int(i)) for i in np.unravel_index(start + first, info.shape))
    raise CheckpointError(
        f"a scale {message}", path=info.file, item=name, found=f"{scales[first]} at [{place}]", hint=hint
    )
