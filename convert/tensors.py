"""The table of tensors: what a checkpoint must hold, and what each tensor is called in the GGUF.

Every tensor of a checkpoint is in this table or is refused; nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sb_edge.config import SpikingBrainConfig
from sb_edge.convert.checkpoint import Checkpoint
from sb_edge.errors import CheckpointError

_BIASES = ("q_proj", "k_proj", "v_proj")
_GATE_DOWN = "model.layers.{}.attn.gk_proj.0.weight"
_GATE_MERGED = "model.layers.{}.attn.gk_proj.weight"
_QUANTIZER_SCALES = ".weight_quantizer.scales"


@dataclass(frozen=True)
class TensorSpec:
    """What one checkpoint tensor becomes.

    Attributes:
        gguf_name: its name in the GGUF.
        shape: numpy's and PyTorch's order, [out, in]; ggml writes it reversed.
        keep_f32: stored as F32 whatever the output type is: norms, biases and the gate's pair, which are
            small and feed an exponential.
    """

    gguf_name: str
    shape: tuple[int, ...]
    keep_f32: bool = False


@dataclass(frozen=True)
class TensorLayout:
    """What varies between checkpoints of one config.

    Attributes:
        attention_bias: q, k and v have biases.
        gate_rank: inner size of the gate's low-rank pair; 16 in the public release.
    """

    attention_bias: bool
    gate_rank: int


def expected_tensors(
    config: SpikingBrainConfig, *, attention_bias: bool = True, gate_rank: int = 16
) -> dict[str, TensorSpec]:
    """Checkpoint name to GGUF name and shape, in the order in which they are written.

    Args:
        config: the model's shape.
        attention_bias: q, k and v projections have biases, as in the 7B; all three or none.
        gate_rank: inner size of the gate's low-rank pair of projections.
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
            gate = source + "attn.gk_proj."
            table[gate + "0.weight"] = TensorSpec(target + "ssm_f_a.weight", (gate_rank, hidden), True)
            table[gate + "1.weight"] = TensorSpec(target + "ssm_f_b.weight", (config.kv_dim, gate_rank), True)
            table[gate + "1.bias"] = TensorSpec(target + "ssm_f_b.bias", (config.kv_dim,), True)
            table[source + "attn.g_norm.weight"] = TensorSpec(target + "ssm_norm.weight", (head_dim,), True)
        table[source + "mlp_norm.weight"] = TensorSpec(target + "ffn_norm.weight", (hidden,), True)
        table[source + "mlp.gate_proj.weight"] = TensorSpec(target + "ffn_gate.weight", (ffn, hidden))
        table[source + "mlp.up_proj.weight"] = TensorSpec(target + "ffn_up.weight", (ffn, hidden))
        table[source + "mlp.down_proj.weight"] = TensorSpec(target + "ffn_down.weight", (hidden, ffn))
    table["model.norm.weight"] = TensorSpec("output_norm.weight", (hidden,), True)
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = TensorSpec("output.weight", (config.vocab_size, hidden))
    return table


def detect_layout(checkpoint: Checkpoint) -> TensorLayout:
    """Whether a checkpoint has attention biases, and its gate's rank.

    Raises:
        CheckpointError: a W8ASpike checkpoint, biases on some projections only, or a gate that is no matrix.
    """
    names = set(checkpoint.names)
    _refuse_w8aspike(checkpoint, names)
    return TensorLayout(_has_biases(checkpoint, names), _gate_rank(checkpoint, names))


def _refuse_w8aspike(checkpoint: Checkpoint, names: set[str]) -> None:
    layers = range(checkpoint.config.num_hidden_layers)
    marks = [name for name in checkpoint.names if name.endswith(_QUANTIZER_SCALES)]
    marks += [name for name in map(_GATE_MERGED.format, layers) if name in names]
    if marks:
        raise CheckpointError(
            "W8ASpike checkpoints are not supported yet",
            path=checkpoint.info(marks[0]).file,
            item=marks[0],
            hint="convert the release's unquantized checkpoint instead",
        )


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
    gates = [_GATE_DOWN.format(layer) for layer, gla in enumerate(checkpoint.config.recurrent_layers) if gla]
    first = next((name for name in gates if name in names), None)
    if first is None:
        return 16
    shape = checkpoint.info(first).shape
    if len(shape) != 2 or shape[0] < 1:
        raise CheckpointError(
            "has the wrong shape",
            path=checkpoint.info(first).file,
            item=first,
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
        checkpoint.config, attention_bias=layout.attention_bias, gate_rank=layout.gate_rank
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
