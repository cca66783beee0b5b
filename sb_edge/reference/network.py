"""The SpikingBrain network, loaded from a checkpoint in the public layout.

Module names are the checkpoint's tensor names, so a state dict is a checkpoint and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.spike_plan import RELEASED_PLAN, SpikePlan
from sb_edge.arch.tensors import TensorLayout
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.reference.experts import MixtureOfExperts
from sb_edge.reference.layers import (
    Attention,
    Block,
    GatedLinearAttention,
    HeadHybridAttention,
    LayerState,
    Operator,
    RMSNorm,
    SlidingWindowAttention,
    SwiGLU,
)
from sb_edge.reference.ops import chunk, naive
from sb_edge.reference.spiking import Site, projections, watch_counts
from sb_edge.util.errors import CheckpointError, SpikeError

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
        bias, rank = layout.attention_bias, layout.gate_rank
        kept = config.attn_heads or [[]] * config.num_hidden_layers
        for recurrent, heads, mixed in zip(config.recurrent_layers, kept, config.moe_layers, strict=True):
            attention: Attention
            if not recurrent:
                attention = SlidingWindowAttention(config, bias)
            elif heads:
                attention = HeadHybridAttention(config, bias, rank, operator, heads)
            else:
                attention = GatedLinearAttention(config, bias, rank, operator)
            dense = (config.hidden_size, config.intermediate_size)
            mlp = MixtureOfExperts(config) if mixed else SwiGLU(*dense)
            self.layers.append(Block(config, attention, mlp))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class SpikingBrain(nn.Module):
    """The language model.

    Args:
        config: sizes, layer map, window, rotary base.
        layout: whether q, k and v have biases, and the gate's rank. Its scales play no part here: weights are
            rounded as they are loaded.
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
            on_tensor: called with the engine's names and the values: "l_out-0" (a block's output), ...,
                "result_norm", [B, T, hidden], and int32 counts [B, T, n], "spike_attn_q-0", ..., named for
                the first of the projections that share them.

        Returns:
            [B, T, vocab] in the weights' dtype.
        """
        return functional.linear(self.hidden(tokens, cache, on_tensor), self.head)

    @property
    def head(self) -> Tensor:
        """The output's weight [vocab, hidden]: its own, or the embeddings."""
        weight: Tensor = (self.model.embeddings if self.lm_head is None else self.lm_head).weight
        return weight

    def hidden(self, tokens: Tensor, cache: Cache | None = None, on_tensor: OnTensor | None = None) -> Tensor:
        """As `forward`, but what the head is applied to: [B, T, hidden], after the final norm."""
        state = Cache() if cache is None else cache
        x = self.model.embeddings(tokens)
        for index, block in enumerate(self.model.layers):
            with _named_counts(block, index, on_tensor):
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
        return x

    def set_spikes(self, plan: SpikePlan | None) -> None:
        """Code inputs, queries, keys and values as a plan says; None: none of them. Weights stay as they are.

        Raises:
            SpikeError: the plan is for another number of layers.
        """
        blocks = self.model.layers
        if plan and plan.layer_k is not None and len(plan.layer_k) != len(blocks):
            raise SpikeError(
                "a k for every layer", item="layer_k", found=len(plan.layer_k), expected=len(blocks)
            )
        for index, block in enumerate(blocks):
            for name, projection in projections(block).items():
                projection.spike_k = plan.k_of(index, name) if plan else 0.0
            if isinstance(block.attn, SlidingWindowAttention):
                block.attn.query_k = plan.query_k if plan else 0.0
                block.attn.kv_rounding = bool(plan and plan.kv_rounding)

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

        A W8ASpike checkpoint's weights are rounded to multiples of their scales, except where the release
        does not, and it gets `RELEASED_PLAN`'s spikes; any other gets none. `set_spikes` changes that.

        Args:
            folder: a checkpoint in the public layout.
            dtype: of weights and activations.
            device: where they are.
            attention: "chunk" (fast) or "naive" (the oracle) in the GLA layers.

        Raises:
            CheckpointError, ConfigError: damaged files, or tensors that do not fit the config.
        """
        checkpoint = Checkpoint.open(folder)
        layout, table = account_for_tensors(checkpoint)
        with torch.device("meta"):
            model = cls(checkpoint.config, layout, attention)
        model.set_spikes(RELEASED_PLAN if layout.quantized else None)
        weights = {
            name: _weight(checkpoint, name, spec.scales).to(device, dtype)
            for name, spec in table.items()
            if spec.gguf_name
        }
        model.load_state_dict(weights, assign=True)
        return model.eval()


@contextmanager
def _named_counts(block: nn.Module, layer: int, on_tensor: OnTensor | None) -> Iterator[None]:
    """Pass a block's counts to `on_tensor`, under the engine's names."""
    if on_tensor is None:
        yield
        return

    def name_site(site: Site, counts: Tensor) -> None:
        on_tensor(f"spike_{site[0]}-{layer}", counts)

    with watch_counts(block, name_site):
        yield


def _weight(checkpoint: Checkpoint, name: str, scales: str | None) -> Tensor:
    """A checkpoint's tensor; with scales, round(w / scale) * scale in float32, not clipped to INT8.

    Raises:
        CheckpointError: a scale that is not a positive number.
    """
    weight = _tensor(checkpoint.read(name))
    if scales is None:
        return weight
    scale = _tensor(checkpoint.read(scales)).float()  # [out, in / 128, 1]
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise CheckpointError(
            "holds a scale that is not a positive number", path=checkpoint.info(scales).file, item=scales
        )
    groups = weight.float().unflatten(1, (scale.shape[1], -1))
    return ((groups / scale).round() * scale).flatten(1)


def _tensor(array: np.ndarray) -> Tensor:
    """A copy of a checkpoint's array; bfloat16 travels as int16, which numpy and PyTorch both know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
