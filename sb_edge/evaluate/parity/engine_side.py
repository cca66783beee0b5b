"""The engine's side of a comparison: logits, layer outputs, spike counts and greedy text of a prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sb_edge.evaluate.parity.spike_counts import Counts
from sb_edge.runtime.session import Model, Session
from sb_edge.runtime.spike_counters import CountRecorder

LAYER_FILTER = r"^(l_out-\d+|result_norm)$"
"""Names of the compared layer outputs: of every block, and of the final norm."""

_INPUT_FILTER = r"embd|ffn_inp-\d+|l_out-\d+"

KvType = Literal["f16", "f32", "q8_0"]
KvTypes = tuple[KvType, KvType]
"""Types of K and V."""


class Evaluates(Protocol):
    """The part of an engine session that `feed` and `continue_greedily` use."""

    def evaluate(self, tokens: Sequence[int], *, all_logits: bool = False) -> NDArray[np.float32]:
        """Append tokens; return logits [vocab], or [n, vocab] with `all_logits`."""


@dataclass(frozen=True)
class Rows:
    """Results of one side for a prompt.

    Attributes:
        logits: [T, vocab].
        layers: layer outputs [T, hidden] by name ("l_out-0", ...); empty if not collected.
        counts: spike counts of every coded projection; empty without spikes.
    """

    logits: NDArray[np.floating]
    layers: dict[str, NDArray[np.floating]]
    counts: Counts = field(default_factory=dict)


@dataclass(frozen=True)
class BlockInputs:
    """Inputs of a block's attention and feed-forward network, float32 [T, hidden]."""

    attention: NDArray[np.float32]
    ffn: NDArray[np.float32]


@dataclass(frozen=True)
class EngineSpikes:
    """The engine's spike counts on a prompt and the inputs of its blocks, in order."""

    counts: Counts
    inputs: tuple[BlockInputs, ...]


def chosen_kv_types(model: Model, type_k: KvType | None, type_v: KvType | None) -> KvTypes:
    """f16, the engine's default, where None; f32 for a spiking model, whose counts f16 would change."""
    default: KvType = "f32" if model.spike_plan else "f16"
    return type_k or default, type_v or default


def observe_engine(model: Model, tokens: Sequence[int], kv_types: KvTypes) -> EngineSpikes:
    """Record the engine's spike counts and block inputs on a prompt.

    Args:
        model: model with a spike plan.
        tokens: the prompt.
        kv_types: types of K and V.
    """
    recorder = CountRecorder(model)
    names = f"{_INPUT_FILTER}|{recorder.tensor_filter}"
    _, inputs = _evaluate(model, tokens, len(tokens), kv_types, names)
    for name, values in inputs.items():
        recorder.on_tensor(name, values)
    layers = sum(name.startswith("l_out-") for name in inputs)
    blocks = (
        BlockInputs(inputs[f"l_out-{layer - 1}" if layer else "embd"], inputs[f"ffn_inp-{layer}"])
        for layer in range(layers)
    )
    return EngineSpikes({key: found.counts for key, found in recorder.counts().items()}, tuple(blocks))


def feed(session: Evaluates, tokens: Sequence[int], piece: int) -> NDArray[np.float32]:
    """All logits [T, vocab] of a prompt evaluated `piece` tokens at a time."""
    starts = range(0, len(tokens), piece)
    return np.concatenate([session.evaluate(tokens[at : at + piece], all_logits=True) for at in starts])


def continue_greedily(session: Evaluates, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """Greedy continuation in an engine session; see `sb_edge.reference.greedy.greedy`."""
    tokens: list[int] = []
    logits = session.evaluate(prompt)
    while len(tokens) < n_tokens:
        tokens.append(int(logits.argmax()))
        if len(tokens) < n_tokens:
            logits = session.evaluate(tokens[-1:])
    return tokens


def evaluate_prompt(
    model: Model, tokens: Sequence[int], piece: int, kv_types: KvTypes, *, per_layer: bool
) -> Rows:
    """Evaluate a prompt `piece` tokens at a time; with `per_layer` collect layer outputs."""
    return Rows(*_evaluate(model, tokens, piece, kv_types, LAYER_FILTER if per_layer else None))


def _evaluate(
    model: Model, tokens: Sequence[int], piece: int, kv_types: KvTypes, names: str | None
) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    """Logits of a prompt, and the values of the tensors whose whole name matches `names`."""
    collected: dict[str, list[NDArray[Any]]] = defaultdict(list)
    with Session(
        model,
        n_ctx=len(tokens),
        type_k=kv_types[0],
        type_v=kv_types[1],
        on_tensor=(lambda name, values: collected[name].append(values)) if names else None,
        tensor_filter=names,
    ) as session:
        logits = feed(session, tokens, piece)
    return logits, {name: np.concatenate(parts) for name, parts in collected.items()}


def generate_greedily(model: Model, prompt: Sequence[int], n_tokens: int, kv_types: KvTypes) -> list[int]:
    """Greedy continuation of a prompt, `n_tokens` token ids."""
    n_ctx = len(prompt) + n_tokens
    with Session(model, n_ctx=n_ctx, type_k=kv_types[0], type_v=kv_types[1]) as session:
        return continue_greedily(session, prompt, n_tokens)
