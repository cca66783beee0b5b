"""Match the tensors of a checkpoint with the table of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.tensors import (
    GATE_DOWN,
    GATE_MERGED,
    PROJECTION,
    SCALE_GROUP,
    SCALES,
    TensorLayout,
    TensorSpec,
    expected_tensors,
)
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.util.errors import CheckpointError

_BIASES = ("q_proj", "k_proj", "v_proj")


def detect_layout(checkpoint: Checkpoint) -> TensorLayout:
    """Detect attention biases, scales and the rank of the gates of a checkpoint.

    Raises:
        CheckpointError: only some biases, scales or merged gates are present, a gate is not a matrix, or the
            sizes or gates of the model do not allow scales.
    """
    names = set(checkpoint.names)
    layout = TensorLayout(_has_biases(checkpoint, names), _gate_rank(checkpoint, names))
    return replace(layout, quantized=_has_scales(checkpoint, names, layout))


def _has_scales(checkpoint: Checkpoint, names: set[str], layout: TensorLayout) -> bool:
    first = next((name for name in checkpoint.names if name.endswith(SCALES)), None)
    if first is None:
        return False
    config = checkpoint.config
    if layout.gate_rank and any(config.recurrent_layers):
        raise CheckpointError(
            "scales need merged gates",
            path=checkpoint.info(first).file,
            item=first,
            found="gates of two projections",
            expected="attn.gk_proj.weight, as in the W8ASpike release",
        )
    for key in ("hidden_size", "intermediate_size"):
        if getattr(config, key) % SCALE_GROUP:
            raise CheckpointError(
                "is not a multiple of the group size of the scales",
                path=checkpoint.folder / "config.json",
                item=key,
                found=getattr(config, key),
                expected=f"a multiple of {SCALE_GROUP}",
            )
    expected = [name + SCALES for name in expected_tensors(config, gate_rank=0) if name.endswith(PROJECTION)]
    return _has_all(checkpoint, expected, names, "scales", first)


def _has_biases(checkpoint: Checkpoint, names: set[str]) -> bool:
    layers = range(checkpoint.config.num_hidden_layers)
    biases = [f"model.layers.{layer}.attn.{name}.bias" for layer in layers for name in _BIASES]
    first = next((name for name in biases if name in names), None)
    return first is not None and _has_all(checkpoint, biases, names, "attention biases", first)


def _has_all(checkpoint: Checkpoint, expected: list[str], names: set[str], what: str, first: str) -> bool:
    """True; refuses a checkpoint without one of the expected tensors, though it has the `first` of them."""
    missing = [name for name in expected if name not in names]
    if missing:
        raise CheckpointError(
            "is missing",
            path=checkpoint.folder,
            item=missing[0],
            found=f"{len(expected) - len(missing)} of {len(expected)} {what}, including {first}",
            expected="all or none",
        )
    return True


def _gate_rank(checkpoint: Checkpoint, names: set[str]) -> int:
    layers = [layer for layer, gla in enumerate(checkpoint.config.recurrent_layers) if gla]
    merged, pairs = (
        [name for name in map(pattern.format, layers) if name in names]
        for pattern in (GATE_MERGED, GATE_DOWN)
    )
    if merged and pairs:
        raise CheckpointError(
            "merged gates and pairs are mixed",
            path=checkpoint.info(merged[0]).file,
            item=merged[0],
            found=f"also {pairs[0]}",
            expected="only merged gates, or only pairs gk_proj.0 and gk_proj.1",
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
    """Match a checkpoint's tensors with the table.

    Returns:
        The layout of the checkpoint, and the table of its tensors.

    Raises:
        CheckpointError: a tensor is unknown, missing or has the wrong shape; names the first one.
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
        tied = "; if the output is tied to the embeddings, set tie_word_embeddings to true in config.json"
        raise CheckpointError(
            "is missing",
            path=checkpoint.folder,
            item=missing[0],
            found=f"{len(missing)} tensors missing" if len(missing) > 1 else None,
            hint="fetch the checkpoint again" + (tied if missing[0] == "lm_head.weight" else ""),
        )


def _unknown_hint(name: str, config: SpikingBrainConfig) -> str:
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return "config.json sets tie_word_embeddings: remove the tensor, or set it to false"
    if ".gk_proj." in name or ".g_norm." in name:
        return "gates belong to GLA layers: check attn_layers in config.json"
    if "conv1d" in name:
        return "short convolutions are not supported"
    return "convert a checkpoint in the public gla_swa layout"
