"""The SpikingBrain network, loaded from a checkpoint in the public layout.

Module names are the checkpoint's tensor names, so a state dict is a checkpoint and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sb_edge.config import SpikingBrainConfig
from sb_edge.convert.checkpoint import Checkpoint
from sb_edge.convert.tensors import TensorLayout, account_for_tensors
from sb_edge.reference import chunk, naive
from sb_edge.reference.layers import (
    Attention,
    Block,
    GatedLinearAttention,
    LayerState,
    Operator,
    RMSNorm,
    SlidingWindowAttention,
)

OPERATORS: dict[str, Operator] = {
    "naive": naive.gated_linear_attention,
    "chunk": chunk.gated_linear_attention,
}

OnTensor = Callable[[str, Tensor], None]


@dataclass
class Cache:
    """What incremental decoding keeps: the number of tokens seen, and a state a layer, set by the model."""

    position: int = 0
    layers: dict[int, LayerState] = field(default_factory=dict)


class Decoder(nn.Module):
    """Embeddings, blocks and the final norm."""

    def __init__(self, config: SpikingBrainConfig, layout: TensorLayout, operator: Operator) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        for recurrent in config.recurrent_layers:
            attention: Attention = (
                GatedLinearAttention(config, layout.attention_bias, layout.gate_rank, operator)
                if recurrent
                else SlidingWindowAttention(config, layout.attention_bias)
            )
            self.layers.append(Block(config, attention))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class SpikingBrain(nn.Module):
    """The language model.

    Args:
        config: sizes, layer map, window, rotary base.
        layout: whether q, k and v have biases, and the gate's rank.
        attention: "chunk" (fast) or "naive" (the oracle) in the GLA layers.
    """

    def __init__(
        self,
        config: SpikingBrainConfig,
        layout: TensorLayout,
        attention: Literal["naive", "chunk"] = "chunk",
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, layout, OPERATORS[attention])
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def forward(
        self, tokens: Tensor, cache: Cache | None = None, on_tensor: OnTensor | None = None
    ) -> Tensor:
        """Logits of every position.

        Args:
            tokens: [B, T] integers, T >= 1.
            cache: continues after the tokens that it has seen, and is brought up to date; None starts afresh.
            on_tensor: called with the engine's names, "l_out-0" (a block's output), ..., "result_norm",
                and a [B, T, hidden] tensor.

        Returns:
            [B, T, vocab] in the weights' dtype.
        """
        state = Cache() if cache is None else cache
        x = self.model.embeddings(tokens)
        for index, block in enumerate(self.model.layers):
            x, layer_state = block(x, state.layers.get(index, ()), state.position)
            if cache is not None:
                cache.layers[index] = layer_state
            if on_tensor:
                on_tensor(f"l_out-{index}", x)
        if cache is not None:
            cache.position += tokens.shape[1]
        x = self.model.norm(x)
        if on_tensor:
            on_tensor("result_norm", x)
        head = self.model.embeddings if self.lm_head is None else self.lm_head
        return functional.linear(x, head.weight)

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        attention: Literal["naive", "chunk"] = "chunk",
    ) -> SpikingBrain:
        """Load a checkpoint folder, one tensor at a time.

        Raises:
            CheckpointError, ConfigError: damaged files, or tensors that do not fit the config.
        """
        checkpoint = Checkpoint.open(folder)
        layout, table = account_for_tensors(checkpoint)
        with torch.device("meta"):
            model = cls(checkpoint.config, layout, attention)
        weights = {name: _tensor(checkpoint.read(name)).to(device, dtype) for name in table}
        model.load_state_dict(weights, assign=True)
        return model.eval()


def _tensor(array: np.ndarray) -> Tensor:
    """A copy of a checkpoint's array; bfloat16 travels as int16, which numpy and PyTorch both know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
