"""Every numerical tolerance of the project, in one place: tests and `sb-edge parity` read them here.

All but the last table are ceilings on the NMSE, sum((x - y)^2) / sum(x^2) with x the reference. None is
loosened by environment.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """A ceiling on the NMSE between two computations."""

    name: str
    nmse: float
    why: str


CHUNK_F64 = Tolerance("chunk against naive, float64", 1e-28, "another order of summation; seen 8e-32")
CHUNK_F32 = Tolerance(
    "chunk float32 against naive float64", 1e-12, "seen 1.4e-14, no more than naive float32 has"
)
GRADIENT_F64 = Tolerance(
    "gradients of chunk against naive, float64", 1e-26, "seen 7e-30: sums over all tokens and channels"
)
PIECES_F64 = Tolerance(
    "reference in pieces against whole, float64", 1e-26, "seen 1.3e-30 over four tiny layers"
)
PIECES_F32 = Tolerance(
    "reference in pieces against whole, float32", 1e-11, "seen 3.3e-13 over four tiny layers"
)
GOLDEN_F32 = Tolerance(
    "reference float32 or float64 against recorded logits",
    1e-11,
    "seen 2.5e-13 from either: the rounding of the recording, itself made in float32",
)
GOLDEN_BF16 = Tolerance(
    "reference bfloat16 against recorded logits", 1e-3, "seen 1e-4: 8 bits of mantissa between operations"
)
TRAINED = Tolerance(
    "a trained tensor of base and delta", 1e-4, "8 bits with a scale for 32 values: seen 3.6e-5"
)
ENGINE_F32 = Tolerance(
    "engine, f32 KV",
    1e-8,
    "float32 throughout, in another order of summation; seen 2.9e-13 on the recorded case",
)
ENGINE_F16 = Tolerance(
    "engine, f16 KV", 1e-5, "K and V carry 11 bits; seen 5e-9 for a whole prompt, 1.7e-7 in pieces"
)
ENGINE_Q8_0 = Tolerance(
    "engine, q8_0 KV",
    1e-4,
    "K and V carry 8 bits, one scale for 32; seen 3.9e-6",
)
SPIKES_F32 = Tolerance(
    "engine with spikes, f32 KV, recorded logits",
    1e-4,
    "a count on a rounding edge may flip; none does in the recorded case, seen 1.4e-13",
)
SPIKES = Tolerance(
    "engine with spikes otherwise",
    2e-2,
    "one flipped count moves all that follows; seen 4.7e-4 with f32 KV, 4.3e-3 with q8_0 KV",
)
UPCYCLE_EXACT = Tolerance(
    "mixture of experts against the dense FFN, equal shares",
    1e-13,
    "scaled weights are rounded to float32; seen 6e-16",
)
UPCYCLE_ROUTED = Tolerance(
    "mixture of experts against the dense FFN, first routers",
    1e-6,
    "shares are 1/N to some thousandths; seen 8e-9 to 6e-8",
)
UPCYCLE_SCALED_GATE = Tolerance(
    "mixture of experts against the dense FFN, gate scaled",
    1e-3,
    "SiLU is not homogeneous; seen 4e-5",
)
SPARSE_PRODUCT = Tolerance(
    "sparse product against dense, no channel's zone between them",
    1e-5,
    "the dense product rounds the input to 8 bits with a half-precision scale",
)

TABLE = (
    CHUNK_F64,
    CHUNK_F32,
    GRADIENT_F64,
    PIECES_F64,
    PIECES_F32,
    GOLDEN_F32,
    GOLDEN_BF16,
    ENGINE_F32,
    ENGINE_F16,
    ENGINE_Q8_0,
    SPIKES_F32,
    SPIKES,
    UPCYCLE_EXACT,
    UPCYCLE_ROUTED,
    UPCYCLE_SCALED_GATE,
    SPARSE_PRODUCT,
)

ENGINE_BY_KV_TYPE = {"f32": ENGINE_F32, "f16": ENGINE_F16, "q8_0": ENGINE_Q8_0}
"""For a GGUF whose weights are exactly the checkpoint's; other weight types bring an error of their own."""

COUNTS_IDENTICAL = {"f32": 0.9999, "f16": 0.999, "q8_0": 0.999}
"""By KV type, the share of spike counts that must be the same from the same inputs; the others are one apart.
Seen 1 with f32, 0.9999 with f16 and 0.9998 with q8_0: K and V of fewer bits move what `attn_output` codes."""
