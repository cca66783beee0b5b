"""What the inputs of projections look like on a text: importances of channels, and which neurons fire."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sb_edge.evaluate.perplexity import evaluate
from sb_edge.quant.sparse.dead_zones import Importances
from sb_edge.quant.sparse.neuron_order import CLUSTERED
from sb_edge.runtime.session import Model
from sb_edge.util.progress import progress_bar

Key = tuple[int, str]
"""A projection: its layer and its name."""

READERS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "kqv_out": ("attn_output",),
    "gla_norm": ("attn_output",),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "ffn_swiglu": ("ffn_down",),
}
"""Nodes of the engine's graph, and the projections that read them."""


class InputRecorder:
    """Collects what a session evaluates that has its `on_tensor` and `tensor_filter`.

    Args:
        norms: For each projection to record, the norms of the columns of its weight, [n].
        firing: layers whose neurons are watched; their ffn_down is among `norms`. A neuron fires where its
            importance is in the upper half of the token's.
    """

    tensor_filter = rf"({'|'.join(READERS)})-\d+"

    def __init__(self, norms: Mapping[Key, NDArray[np.float32]], firing: Collection[int] = ()) -> None:
        self.importances = {key: Importances(each) for key, each in norms.items()}
        self._firing: dict[int, list[NDArray]] = {layer: [] for layer in firing}

    def on_tensor(self, name: str, values: NDArray[np.float32]) -> None:
        """Count a node's rows, [T, n]."""
        node, _, layer = name.rpartition("-")
        for projection in READERS[node]:
            recorded = self.importances.get((int(layer), projection))
            if recorded is not None:
                recorded.add(values)
        if node == "ffn_swiglu" and int(layer) in self._firing:
            self._fire(int(layer), np.abs(values) * self.importances[int(layer), "ffn_down"].norms)

    def _fire(self, layer: int, importance: NDArray[np.float32]) -> None:
        fires = importance >= np.median(importance, axis=1, keepdims=True)
        seen = self._firing[layer]
        seen.append(fires)
        if fires.shape[1] > CLUSTERED:  # only how often matters then
            self._firing[layer] = [np.concatenate(seen).sum(axis=0, keepdims=True)]

    def firing(self) -> dict[int, NDArray]:
        """By layer: bool [T, n]; of more than `CLUSTERED` neurons, how often each fired, int64 [1, n]."""
        return {layer: np.concatenate(rows) for layer, rows in self._firing.items()}


def record_inputs(
    model: Model, tokens: Sequence[int], recorder: InputRecorder, *, n_threads: int | None = None
) -> None:
    """Evaluate a text in one context under a recorder.

    Raises:
        InferenceError: no tokens, or one outside the vocabulary.
    """
    rows = evaluate(
        model,
        tokens,
        n_threads=n_threads,
        on_tensor=recorder.on_tensor,
        tensor_filter=recorder.tensor_filter,
    )
    with progress_bar("recording inputs", len(tokens)) as advance:
        for logits in rows:
            advance(len(logits))
