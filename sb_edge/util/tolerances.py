"""All numerical tolerances of the project; the tests and `sb-edge parity` use them.

All except the last table are upper bounds of the NMSE, sum((x - y)^2) / sum(x^2), where x is the reference.
No environment loosens them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Upper bound of the NMSE between two computations."""

    name: str
    nmse: float
    why: str


CHUNK_F64 = Tolerance("chunk against naive, float64", 1e-28, "different order of summation; measured 8e-32")
CHUNK_F32 = Tolerance(
    "chunk float32 against naive float64", 1e-12, "measured 1.4e-14, not more than naive float32"
)
GRADIENT_F64 = Tolerance(
    "gradients of chunk against naive, float64", 1e-26, "measured 7e-30: sums over all tokens and channels"
)
PIECES_F64 = Tolerance(
    "reference in chunks against whole, float64", 1e-26, "measured 1.3e-30 over four tiny layers"
)
PIECES_F32 = Tolerance(
    "reference in chunks against whole, float32", 1e-11, "measured 3.3e-13 over four tiny layers"
)
GOLDEN_F32 = Tolerance(
    "reference float32 or float64 against recorded logits",
    1e-11,
    "measured 2.5e-13 with either: the recording itself is rounded to float32",
)
GOLDEN_BF16 = Tolerance(
    "reference bfloat16 against recorded logits", 1e-3, "measured 1e-4: 8 bits of mantissa between operations"
)
TRAINED = Tolerance(
    "trained tensor from base and adapter file", 1e-4, "8 bits, one scale per 32 values; measured 3.6e-5"
)
ENGINE_F32 = Tolerance(
    "engine, f32 KV",
    1e-8,
    "float32 throughout, different order of summation; measured 2.9e-13 on the recorded case",
)
ENGINE_F16 = Tolerance(
    "engine, f16 KV", 1e-5, "K and V have 11 bits; measured 5e-9 for a whole prompt, 1.7e-7 in chunks"
)
ENGINE_Q8_0 = Tolerance(
    "engine, q8_0 KV",
    1e-4,
    "K and V have 8 bits, one scale per 32 values; measured 3.9e-6",
)
SPIKES_F32 = Tolerance(
    "engine with spikes, f32 KV, recorded logits",
    1e-4,
    "a count near a rounding boundary can change; none does in the recorded case, measured 1.4e-13",
)
SPIKES = Tolerance(
    "engine with spikes, other cases",
    2e-2,
    "one changed count changes all later values; measured 4.7e-4 with f32 KV, 4.3e-3 with q8_0 KV",
)
UPCYCLE_EXACT = Tolerance(
    "mixture of experts against the dense FFN, equal shares",
    1e-13,
    "scaled weights are rounded to float32; measured 6e-16",
)
UPCYCLE_ROUTED = Tolerance(
    "mixture of experts against the dense FFN, initial routers",
    1e-6,
    "shares differ from 1/N by some thousandths; measured 8e-9 to 6e-8",
)
UPCYCLE_SCALED_GATE = Tolerance(
    "mixture of experts against the dense FFN, gate scaled",
    1e-3,
    "SiLU is not homogeneous; measured 4e-5",
)
SPARSE_PRODUCT = Tolerance(
    "sparse product against dense, all channels outside their zones",
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
"""For a GGUF with exactly the checkpoint's weights; other weight types add their own error."""

COUNTS_IDENTICAL = {"f32": 0.9999, "f16": 0.999, "q8_0": 0.999}
"""By KV type, minimum share of equal spike counts for equal inputs; the others differ by one. Measured: 1
with f32, 0.9999 with f16, 0.9998 with q8_0: rounding K and V changes the coded input of `attn_output`."""
