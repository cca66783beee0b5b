"""The table of tensors: what a checkpoint must hold, and what each tensor is called in the GGUF.

Every tensor of a checkpoint is in this table or is refused; nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sb_edge.config import SpikingBrainConfig
from sb_edge.convert.checkpoint import Checkpoint
from sb_edge.errors import CheckpointError

SCALE_GROUP = 128
"""W8ASpike: inputs of a projection that share one scale, in each of its rows."""

_BIASES = ("q_proj", "k_proj", "v_proj")
_GATE_DOWN = "model.layers.{}.attn.gk_proj.0.weight"
_GATE_MERGED = "model.layers.{}.attn.gk_proj.weight"
_PROJECTION = "_proj.weight"  # ends the names of all that W8ASpike stores scales for
_UNROUNDED = ".mlp.down_proj.weight"  # has scales, but the release multiplies by the raw weight
_SCALES = "_quantizer.scales"


@dataclass(frozen=True)
class TensorSpec:
    """What one checkpoint tensor becomes.

    Attributes:
        gguf_name: its name in the GGUF; "" for a quantizer's scales, which are not written.
        shape: numpy's and PyTorch's order, [out, in]; ggml writes it reversed.
        keep_f32: stored as F32 whatever the output type is: norms, biases and the gate's pair, which are
            small and feed an exponential.
        scales: checkpoint name of the scales [out, in / SCALE_GROUP, 1] whose multiples this weight is
            rounded to; None: it is used as it is.
    """

    gguf_name: str
    shape: tuple[int, ...]
    keep_f32: bool = False
    scales: str | None = None


@dataclass(frozen=True)
class TensorLayout:
    """What varies between checkpoints of one config.

    Attributes:
        attention_bias: q, k and v have biases.
        gate_rank: inner size of the gate's low-rank pair, 16 in the public release; 0: one merged projection.
        quantized: every projection has scales, as in the W8ASpike release.
    """

    attention_bias: bool
    gate_rank: int
    quantized: bool = False


def expected_tensors(
    config: SpikingBrainConfig, *, attention_bias: bool = True, gate_rank: int = 16, quantized: bool = False
) -> dict[str, TensorSpec]:
    """Checkpoint name to GGUF name and shape, in the order in which they are written.

    Args:
        config: the model's shape.
        attention_bias: q, k and v projections have biases, as in the 7B; all three or none.
        gate_rank: inner size of the gate's low-rank pair of projections; 0: one merged projection.
        quantized: every projection has scales; what `ffn_down` has is accounted for, but not used.
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
    """The router, the routed experts stacked, and the shared ones as one FFN of their common width."""
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
        if name.endswith(_PROJECTION):
            rows, width = spec.shape
            if not name.endswith(_UNROUNDED):
                quantized[name] = replace(spec, scales=name + _SCALES)
            quantized[name + _SCALES] = TensorSpec("", (rows, width // SCALE_GROUP, 1))
    return quantized


def detect_layout(checkpoint: Checkpoint) -> TensorLayout:
    """Whether a checkpoint has attention biases and scales, and its gate's rank.

    Raises:
        CheckpointError: biases, scales or merged gates in some places only, a gate that is no matrix, or
            scales in a model whose sizes or gates they do not fit.
    """
    names = set(checkpoint.names)
    layout = TensorLayout(_has_biases(checkpoint, names), _gate_rank(checkpoint, names))
    return replace(layout, quantized=_has_scales(checkpoint, names, layout))


def _has_scales(checkpoint: Checkpoint, names: set[str], layout: TensorLayout) -> bool:
    first = next((name for name in checkpoint.names if name.endswith(_SCALES)), None)
    if first is None:
        return False
    config = checkpoint.config
    if layout.gate_rank and any(config.recurrent_layers):
        raise CheckpointError(
            "scales belong to a model whose gates are one merged projection each",
            path=checkpoint.info(first).file,
            item=first,
            found="gates of two projections",
            expected="attn.gk_proj.weight, as in the W8ASpike release",
        )
    for key in ("hidden_size", "intermediate_size"):
        if getattr(config, key) % SCALE_GROUP:
            raise CheckpointError(
                "does not divide into the scales' groups",
                path=checkpoint.folder / "config.json",
                item=key,
                found=getattr(config, key),
                expected=f"a multiple of {SCALE_GROUP}",
            )
    expected = [
        name + _SCALES for name in expected_tensors(config, gate_rank=0) if name.endswith(_PROJECTION)
    ]
    missing = [name for name in expected if name not in names]
    if missing:
        raise CheckpointError(
            "is missing",
            path=checkpoint.folder,
            item=missing[0],
            found=f"{len(expected) - len(missing)} of {len(expected)} scales, {first} among them",
            expected="all or none",
        )
    return True


def _has_biases(checkpoint: Checkpoint, names: set[str]) -> bool:
    layers = range(checkpoint.config.num_hidden_layers)
    biases = [f"model.layers.{layer}.attn.{name}.bias" for layer in layers for name in _BIASES]
    present = [name for name in biases if name in names]
    if present and len(present) != len(biases):
        missing = next(name for name in biases if name not in names)
        raise CheckpointError(
            "is missing",
            path=checkpoint.folder,
            item=missing,
            found=f"{len(present)} of {len(biases)} attention biases, {present[0]} among them",
            expected="all or none",
        )
    return bool(present)


def _gate_rank(checkpoint: Checkpoint, names: set[str]) -> int:
    layers = [layer for layer, gla in enumerate(checkpoint.config.recurrent_layers) if gla]
    merged, pairs = (
        [name for name in map(pattern.format, layers) if name in names]
        for pattern in (_GATE_MERGED, _GATE_DOWN)
    )
    if merged and pairs:
        raise CheckpointError(
            "is another kind of gate than the rest",
            path=checkpoint.info(merged[0]).file,
            item=merged[0],
            found=f"{pairs[0]} beside it",
            expected="pairs gk_proj.0 and gk_proj.1, or merged gates",
        )
    if merged:
        return 0
    if not pairs:
        return 16
    shape = checkpoint.info(pairs[0]).shape
    if len(shape) != 2 or shape[0] < 1:
        raise CheckpointError(
            "has the wrong shape",
            path=checkpoint.info(pairs[0]).file,
            item=pairs[0],
            found=list(shape),
            expected="[rank, hidden]",
        )
    return shape[0]


def account_for_tensors(checkpoint: Checkpoint) -> tuple[TensorLayout, dict[str, TensorSpec]]:
    """Match a checkpoint's tensors with the table: none unknown, none missing, none of another shape.

    Raises:
        CheckpointError: names the first tensor that does not fit.
    """
    layout = detect_layout(checkpoint)
    table = expected_tensors(
        checkpoint.config,
        attention_bias=layout.attention_bias,
        gate_rank=layout.gate_rank,
        quantized=layout.quantized,
    )
    names = set(checkpoint.names)
    _check_missing(checkpoint, table, names)
    for name in checkpoint.names:
        if name not in table:
            raise CheckpointError(
                "is not a tensor of this model",
                path=checkpoint.info(name).file,
                item=name,
                hint=_unknown_hint(name, checkpoint.config),
            )
    for name, spec in table.items():
        info = checkpoint.info(name)
        if info.shape != spec.shape:
            raise CheckpointError(
                "has the wrong shape",
                path=info.file,
                item=name,
                found=list(info.shape),
                expected=list(spec.shape),
                hint="correct config.json, or fetch both from one release",
            )
    return layout, table


def _check_missing(checkpoint: Checkpoint, table: Iterable[str], names: set[str]) -> None:
    missing = [name for name in table if name not in names]
    if missing:
        tied = "; if the output is tied to the embeddings set tie_word_embeddings to true in config.json"
        raise CheckpointError(
            "is missing",
            path=checkpoint.folder,
            item=missing[0],
            found=f"{len(missing)} tensors missing" if len(missing) > 1 else None,
            hint="fetch the checkpoint again" + (tied if missing[0] == "lm_head.weight" else ""),
        )


def _unknown_hint(name: str, config: SpikingBrainConfig) -> str:
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return "config.json says tie_word_embeddings: drop the tensor or set it to false"
    if ".gk_proj." in name or ".g_norm." in name:
        return "gates belong to GLA layers: check attn_layers in config.json"
    if "conv1d" in name:
        return "short convolutions are not supported"
    return "convert a checkpoint in the public gla_swa layout"


def attention_prefixes(layers: Iterable[int]) -> tuple[str, ...]:
    """How the names of these layers' attention tensors begin."""
    return tuple(f"model.layers.{layer}.attn." for layer in layers)
