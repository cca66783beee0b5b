"""The base model as teacher: the reference's network with softmax attention, unlimited, in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.tensors import TensorLayout, expected_tensors
from sb_edge.convert.checkpoint.base_model import BaseModelReader, fingerprint, open_base
from sb_edge.convert.transplant import GATE_RANK, refuse_scaling, student_config
from sb_edge.reference import fused_window as fused
from sb_edge.reference.layers import WINDOWED
from sb_edge.reference.network import SpikingBrain


@dataclass(frozen=True)
class Base:
    """A base model, open and loaded.

    Attributes:
        reader: its files.
        sha256: Hash of the files.
        layout: whether it has attention biases, and the gates that a student gets.
        model: its network, without gradients.
    """

    reader: BaseModelReader
    sha256: str
    layout: TensorLayout
    model: SpikingBrain


def load_base(path: Path, device: torch.device, *, ignore_rope_scaling: bool = False) -> Base:
    """Load a Llama- or Qwen2-shaped base in float32.

    Args:
        path: a checkpoint folder or a GGUF.
        device: where the weights are to be.
        ignore_rope_scaling: drop scaled rotary frequencies instead of refusing them.

    Raises:
        CheckpointError, ConfigError, GgufError: missing, damaged or of another shape.
    """
    reader = open_base(path)
    refuse_scaling(reader, ignore_rope_scaling)
    whole = 2**31 - 1  # a window wider than any text
    config = student_config(reader, (), whole)
    layout = TensorLayout(reader.has("model.layers.0.attn.q_proj.bias"), GATE_RANK)
    with torch.device("meta"):
        model = SpikingBrain(config, layout)
    table = expected_tensors(config, attention_bias=layout.attention_bias)
    weights = {
        name: torch.tensor(reader.read(name, spec.shape), device=device) for name, spec in table.items()
    }
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False).eval()
    use_fused_attention(model)
    return Base(reader, fingerprint(path), layout, model)


def use_fused_attention(model: SpikingBrain) -> None:
    """Give the SWA layers PyTorch's own kernel."""
    for module in model.modules():
        if isinstance(module, WINDOWED):
            module.attend = fused.windowed_attention


def gla_layers_of(config: SpikingBrainConfig) -> tuple[int, ...]:
    """The GLA layers, ascending."""
    return tuple(layer for layer, recurrent in enumerate(config.recurrent_layers) if recurrent)
