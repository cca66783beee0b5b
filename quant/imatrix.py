"""Importance matrices of llama-imatrix, checked against the model that they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sb_edge.gguf.reader import GgufHeader, TensorEntry, read_tensors
from sb_edge.gguf.values import tensor_values
from sb_edge.util.errors import GgufError
from sb_edge.util.progress import note

_SUMS = ".in_sum2"


def require_matching_imatrix(imatrix: Path, header: GgufHeader) -> None:
    """Refuse an importance matrix of another model; say which matrices of this one it leaves out.

    Args:
        imatrix: the GGUF that llama-imatrix wrote.
        header: the model to quantize.

    Raises:
        GgufError: not an importance matrix, no entry is for this model, or an entry has the wrong width
            or holds no positive number.
    """
    if not imatrix.exists():
        raise GgufError("not found", path=imatrix, hint="make one with `sb-edge run llama-imatrix`")
    entries = {
        entry.name.removesuffix(_SUMS): entry
        for entry in read_tensors(imatrix)[1]
        if entry.name.endswith(_SUMS)
    }
    if not entries:
        raise GgufError("is not an importance matrix", path=imatrix, expected=f"tensors named *{_SUMS}")
    weights = {
        tensor.name: tensor
        for tensor in header.tensors
        if tensor.name.startswith("blk.") and tensor.name.endswith(".weight") and len(tensor.shape) > 1
    }
    shared = [name for name in weights if name in entries]
    if not shared:
        raise GgufError(
            "belongs to another model",
            path=imatrix,
            found=next(iter(entries)),
            expected=next(iter(weights), None),
            hint="make one of this model with `sb-edge run llama-imatrix`",
        )
    for name in shared:
        _check_entry(imatrix, entries[name], weights[name])
    absent = [name for name in weights if name not in entries]
    if absent:
        note(f"{imatrix}: has no entry for {len(absent)} of {len(weights)} matrices, such as {absent[0]}")


def _check_entry(imatrix: Path, entry: TensorEntry, weight: TensorEntry) -> None:
    if entry.shape[-1:] != weight.shape[-1:]:
        raise GgufError(
            "does not have the width of its matrix",
            path=imatrix,
            item=entry.name,
            found=list(entry.shape),
            expected=weight.shape[-1],
        )
    values = tensor_values(entry)
    if not np.isfinite(values).all() or not (values > 0).any():
        raise GgufError(
            "holds no importance",
            path=imatrix,
            item=entry.name,
            found="zeros" if np.isfinite(values).all() else "NaN or infinity",
            expected="sums of squares",
        )
