"""The table of tensors: checkpoint names, GGUF names and shapes.

A tensor of a checkpoint that is not in this table is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sb_edge.arch.config import SpikingBrainConfig

SCALE_GROUP = 128
"""W8ASpike: number of inputs per scale, in each row of a projection."""

GATE_DOWN = "model.layers.{}.attn.gk_proj.0.weight"
GATE_MERGED = "model.layers.{}.attn.gk_proj.weight"
PROJECTION = "_proj.weight"  # suffix of all weights with scales in W8ASpike
_UNROUNDED = ".mlp.down_proj.weight"  # has scales, but the release uses the raw weight
SCALES = "_quantizer.scales"


@dataclass(frozen=True)
class TensorSpec:
    """The GGUF tensor of a checkpoint tensor.

    Attributes:
        gguf_name: name in the GGUF; "" for scales, which are not written.
        shape: numpy's and PyTorch's order, [out, in]; ggml has the reverse.
        keep_f32: store as F32 with every output type: norms, biases and the gate's pair, which are small and
            feed an exponential.
        scales: checkpoint name of the scales [out, in / SCALE_GROUP, 1] to whose multiples this weight is
            rounded; None: not rounded.
    """

    gguf_name: str
    shape: tuple[int, ...]
    keep_f32: bool = False
    scales: str | None = None


@dataclass(frozen=True)
class TensorLayout:
    """Properties in which checkpoints of one config differ.

    Attributes:
        attention_bias: q, k and v have biases.
        gate_rank: rank of the gate's pair of projections, 16 in the public release; 0: one merged projection.
        quantized: every projection has scales, as in the W8ASpike release.
    """

    attention_bias: bool
    gate_rank: int
    quantized: bool = False


def expected_tensors(
    config: SpikingBrainConfig, *, attention_bias: bool = True, gate_rank: int = 16, quantized: bool = False
) -> dict[str, TensorSpec]:
    """GGUF name and shape by checkpoint name, in file order.

    Args:
        config: configuration of the model.
        attention_bias: q, k and v projections have biases, as in the 7B; all three or none.
        gate_rank: rank of the gate's pair of projections; 0: one merged projection.
        quantized: every projection has scales; the scales of `ffn_down` are not used.
    """
    hidden, ffn, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    widths = {"q_proj": hidden, "k_proj": config.kv_dim, "v_proj": config.kv_dim}
    table = {"model.embeddings.weight": TensorSpec("token_embd.weight", (config.vocab_size, hidden))}
    for layer, recurrent in enumerate(config.recurrent_layers):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        table[source + "attn_norm.weight"] = TensorSpec(target + "attn_norm.weight", (hidden,), True)
        for name, width in widths.items():
            stem = target + "attn_" + name[0]
            table[f"{source}attn.{name}.weight"] = TensorSpec(stem + ".weight", (width, hidden))
            if attention_bias:
                table[f"{source}attn.{name}.bias"] = TensorSpec(stem + ".bias", (width,), True)
        table[source + "attn.o_proj.weight"] = TensorSpec(target + "attn_output.weight", (hidden, hidden))
        if recurrent:
            table |= _gate(source + "attn.gk_proj.", target + "ssm_f_", config, gate_rank)
            table[source + "attn.g_norm.weight"] = TensorSpec(target + "ssm_norm.weight", (head_dim,), True)
        table[source + "mlp_norm.weight"] = TensorSpec(target + "ffn_norm.weight", (hidden,), True)
        mlp = source + "mlp."
        table |= _experts(mlp, target, config) if config.moe_layers[layer] else _ffn(mlp, target, hidden, ffn)
    table["model.norm.weight"] = TensorSpec("output_norm.weight", (hidden,), True)
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = TensorSpec("output.weight", (config.vocab_size, hidden))
    return _with_scales(table) if quantized else table


def _ffn(source: str, target: str, hidden: int, width: int, suffix: str = "") -> dict[str, TensorSpec]:
    return {
        source + "gate_proj.weight": TensorSpec(f"{target}ffn_gate{suffix}.weight", (width, hidden)),
        source + "up_proj.weight": TensorSpec(f"{target}ffn_up{suffix}.weight", (width, hidden)),
        source + "down_proj.weight": TensorSpec(f"{target}ffn_down{suffix}.weight", (hidden, width)),
    }


def _experts(source: str, target: str, config: SpikingBrainConfig) -> dict[str, TensorSpec]:
    """The router, the stacked routed experts, and the shared experts as one FFN of their total width."""
    hidden, ffn, count = config.hidden_size, config.intermediate_size, config.num_experts
    routed = {
        name: replace(spec, shape=(count, *spec.shape))
        for name, spec in _ffn(source + "experts.", target, hidden, ffn, "_exps").items()
    }
    router = TensorSpec(target + "ffn_gate_inp.weight", (count, hidden), True)
    width = config.num_shared_experts * ffn
    shared = _ffn(source + "shared_experts.", target, hidden, width, "_shexp")
    return {source + "router.weight": router} | routed | shared


def _gate(source: str, target: str, config: SpikingBrainConfig, rank: int) -> dict[str, TensorSpec]:
    bias = TensorSpec(target + "b.bias", (config.kv_dim,), True)
    if not rank:
        merged = TensorSpec(target + "b.weight", (config.kv_dim, config.hidden_size))
        return {source + "weight": merged, source + "bias": bias}
    return {
        source + "0.weight": TensorSpec(target + "a.weight", (rank, config.hidden_size), True),
        source + "1.weight": TensorSpec(target + "b.weight", (config.kv_dim, rank), True),
        source + "1.bias": bias,
    }


def _with_scales(table: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    quantized = {}
    for name, spec in table.items():
        quantized[name] = spec
        if name.endswith(PROJECTION):
            rows, width = spec.shape
            if not name.endswith(_UNROUNDED):
                quantized[name] = replace(spec, scales=name + SCALES)
            quantized[name + SCALES] = TensorSpec("", (rows, width // SCALE_GROUP, 1))
    return quantized


def attention_prefixes(layers: Iterable[int]) -> tuple[str, ...]:
    """Prefixes of the names of these layers' attention tensors."""
    return tuple(f"model.layers.{layer}.attn." for layer in layers)
