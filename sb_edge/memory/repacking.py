"""Which weights the engine copies as it loads them, to the layout that its kernels want.

ggml repacks quantized matrices as it loads them, if it has kernels for the processor (ggml-cpu/repack.cpp).
Their originals are unmapped when the model is loaded.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sb_edge.arch.model_spikes import STEMS, effective_plan
from sb_edge.arch.sparse_plan import dense_tensors, is_sparse_tensor
from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.gguf.reader import GgufHeader, TensorEntry

CPUINFO = Path("/proc/cpuinfo")

_RULES: dict[str, dict[str, int]] = {
    "avx2": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8},
    "avx512f": {"Q2_K": 8},
    "asimddp": {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4},
}
"""Linux's name of a processor feature: the types that ggml repacks with it, and what their rows must be a
multiple of."""

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class WeightBytes:
    """Where weights are in memory.

    Attributes:
        mapped: used in place, as pages of the file.
        repacked: copies.
        originals: of those, if nothing uses them in place: mapped until the model is loaded.
    """

    mapped: int
    repacked: int
    originals: int


def weight_bytes(
    header: GgufHeader,
    spikes: float | None = None,
    sparse: bool = True,
    features: frozenset[str] | None = None,
) -> WeightBytes:
    """Bytes of the weights when the model is loaded.

    Args:
        header: the model's.
        spikes: as `effective_plan` takes it. Weights that are multiplied with spike counts are not repacked.
        sparse: with the file's sparse layout: columns and zones are used as they are mapped.
        features: of the processor; None: this one's.

    Raises:
        GgufError, SpikeError: the file's spike keys are wrong.
    """
    rows = _row_steps(cpu_features() if features is None else features)
    plan = effective_plan(header, spikes)
    tensors = header.tensors if sparse else dense_tensors(header)
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)

    def is_repacked(tensor: TensorEntry) -> bool:
        if is_sparse_tensor(tensor.name):
            return False
        if len(tensor.shape) < 2 or tensor.type not in rows or tensor.shape[-2] % rows[tensor.type]:
            return False
        if tensor.name.startswith("token_embd."):
            return tied  # the output's copy: rows of the table itself are looked up as they are
        return not _is_coded(tensor.name, plan)

    copied = [tensor for tensor in tensors if is_repacked(tensor)]
    originals = sum(tensor.nbytes for tensor in copied if not tensor.name.startswith("token_embd."))
    mapped = sum(tensor.nbytes for tensor in tensors) - originals
    return WeightBytes(mapped, sum(tensor.nbytes for tensor in copied), originals)


def is_repacked_type(kind: str, n_rows: int) -> bool:
    """Whether the engine repacks a matrix of this type with so many rows, on this processor."""
    step = _row_steps(cpu_features()).get(kind)
    return step is not None and n_rows % step == 0


def _row_steps(features: frozenset[str]) -> dict[str, int]:
    """The types that are repacked, and what their rows must be a multiple of."""
    return {kind: step for name, kinds in _RULES.items() if name in features for kind, step in kinds.items()}


def _is_coded(name: str, plan: SpikePlan | None) -> bool:
    match = _BLOCK.fullmatch(name)
    if plan is None or match is None:
        return False
    return plan.k_of(int(match[1]), STEMS.get(match[2], match[2])) > 0


@cache
def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Linux's names of this processor's features; elsewhere what its kind of processor has had for years."""
    if not cpuinfo.is_file():
        return frozenset({"asimddp"} if platform.machine().lower() in ("arm64", "aarch64") else {"avx2"})
    found: set[str] = set()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        label, _, value = line.partition(":")
        if label.strip() in ("flags", "Features"):
            found.update(value.split())
    return frozenset(found)
