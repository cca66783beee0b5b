"""The order of FFN neurons: those that fire together side by side.

A neuron is a row of ffn_gate and ffn_up and a column of ffn_down; any order computes the same but for
rounding. Columns that are fetched for one token then lie together.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from sb_edge.arch.sparse_plan import row_name
from sb_edge.gguf.reader import GgufHeader, TensorEntry
from sb_edge.gguf.values import tensor_bytes

CLUSTERED = 8192
"""Neurons of a layer that are clustered at most: time and memory grow with the square."""

_MOVABLE = {"F32": 4, "F16": 2, "BF16": 2}
"""Types of ffn_down whose values can be moved one by one, and their bytes."""

_ROWS = 256
"""Moved at once."""


def firing_order(firing: NDArray[np.bool_]) -> NDArray[np.intp]:
    """An order in which neurons that fire together are neighbours.

    Up to `CLUSTERED` neurons: the leaves of a hierarchical clustering (average linkage) by the cosine of
    their firing over time; beyond: by how often they fire, the most active first.

    Args:
        firing: [T, n], whether a neuron fired at a token.

    Returns:
        [n]: which neuron comes at each place.
    """
    n = firing.shape[1]
    if n < 3 or n > CLUSTERED:
        return np.argsort(-firing.sum(axis=0), kind="stable")
    times = firing.astype(np.float32)
    together = times.T @ times
    often = np.sqrt(np.maximum(np.diagonal(together), 1))
    together /= often[:, None]
    together /= often[None, :]
    distances = np.maximum(1 - together[np.triu_indices(n, 1)].astype(np.float64), 0)
    leaves: NDArray[np.intp] = leaves_list(linkage(distances, method="average"))
    return leaves


def movable_layers(header: GgufHeader) -> list[int]:
    """The layers whose neurons can be moved: a quantized ffn_down holds blocks of them together."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    return [
        layer
        for layer in range(header.integer("block_count"))
        if (down := tensors.get(row_name(layer, "ffn_down"))) is not None and down.type in _MOVABLE
    ]


def write_reordered(header: GgufHeader, folder: Path, orders: Mapping[int, NDArray[np.intp]]) -> Path:
    """A copy of a GGUF with its neurons in other orders.

    Args:
        header: the model's; memory use does not depend on its size.
        folder: where the copy goes, under the same names.
        orders: by layer out of `movable_layers`, each [n_ff].

    Returns:
        The copy, or its first part.
    """
    for file in header.files:
        shutil.copyfile(file, folder / file.name)
    tensors = {tensor.name: replace(tensor, file=folder / tensor.file.name) for tensor in header.tensors}
    for layer, order in orders.items():
        for name in ("ffn_gate", "ffn_up"):
            _move_rows(tensors[row_name(layer, name)], order)
        _move_columns(tensors[row_name(layer, "ffn_down")], order)
    return folder / header.files[0].name


def _move_rows(tensor: TensorEntry, order: NDArray[np.intp]) -> None:
    rows = tensor_bytes(tensor, writable=True)
    rows[:] = rows[order]


def _move_columns(tensor: TensorEntry, order: NDArray[np.intp]) -> None:
    rows = tensor_bytes(tensor, writable=True)
    values = rows.view(f"V{_MOVABLE[tensor.type]}")
    for start in range(0, len(values), _ROWS):
        values[start : start + _ROWS] = values[start : start + _ROWS, order]
