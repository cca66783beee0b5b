"""Upcycle dense FFNs to mixtures of experts that compute the same function (report, section 3).

Every routed and every shared expert starts as a copy of the layer's FFN. With S shared experts and k of N
routed experts, each with a share of about 1/N, the sum is S + k/N times the FFN, so the copies are scaled.
The report scales each of the three matrices by (1 / (S + k/N))^(1/3), 0.98 for S = 1, k = 1, N = 16. SiLU is
not homogeneous, so a scaled gate matrix preserves the function only approximately. By default the factor of
the gate moves to the down projection, where it is exact; `scale_gate` selects the report's form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.tensors import expected_tensors
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.random_weights import normal
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.convert.vocab.export import copy_tokenizer
from sb_edge.gguf.floats import to_float32
from sb_edge.util.errors import CheckpointError, ConfigError
from sb_edge.util.progress import Advance, progress_bar
from sb_edge.util.validation import first_problem

ROUTER_LOGITS = 1e-3
"""Standard deviation of the router's logits for normalised inputs: large enough to route tokens to different
experts, and small enough to keep every share within a few thousandths of 1/N."""


@dataclass(frozen=True)
class UpcycleReport:
    """Result of an upcycling.

    Attributes:
        folder: the checkpoint.
        config: its configuration.
        scale: scale factor, cube root of 1 / (S + k/N).
        parameters: number of parameters of the new checkpoint.
        active: number of parameters that one token uses.
    """

    folder: Path
    config: SpikingBrainConfig
    scale: float
    parameters: int
    active: int


def expert_scale(shared: int, active: int, experts: int) -> float:
    """The report's scale factor.

    >>> round(expert_scale(1, 1, 16), 2)
    0.98
    """
    return float((1 / (shared + active / experts)) ** (1 / 3))


def upcycle(
    checkpoint: Path,
    folder: Path,
    *,
    experts: int = 16,
    active: int = 1,
    shared: int = 1,
    dense_layers: Sequence[int] = (),
    scale_gate: bool = False,
    router_logits: float = ROUTER_LOGITS,
    seed: int = 0,
) -> UpcycleReport:
    """Write a checkpoint whose FFNs are mixtures of experts, complete or not at all.

    Args:
        checkpoint: dense checkpoint in the public layout, not W8ASpike.
        folder: folder to write; must be empty or not exist.
        experts: routed experts per layer, N.
        active: routed experts active per token, k.
        shared: shared experts, active for every token, S.
        dense_layers: layers that keep their dense FFN.
        scale_gate: scale the gate matrix, as in the report.
        router_logits: standard deviation of the router's logits; see `ROUTER_LOGITS`.
        seed: random seed for the router weights.

    Raises:
        CheckpointError, ConfigError: the checkpoint is damaged, already has experts, or has scales, or a
            layer does not exist.
        OutputError: the folder exists or cannot be written.
    """
    source = Checkpoint.open(checkpoint)
    layout, dense = account_for_tensors(source)
    if layout.quantized or source.config.num_experts:
        found = "scales of W8ASpike" if layout.quantized else f"{source.config.num_experts} experts"
        raise CheckpointError(
            "cannot be upcycled", path=checkpoint, found=found, expected="a dense checkpoint without scales"
        )
    config = _config(source, experts, active, shared, dense_layers)
    table = expected_tensors(config, attention_bias=layout.attention_bias, gate_rank=layout.gate_rank)
    ffn = source.info(f"model.layers.{config.num_hidden_layers - 1}.mlp.up_proj.weight").dtype
    shapes = {
        name: (spec.shape, source.info(name).dtype if name in dense else ffn) for name, spec in table.items()
    }
    scale = expert_scale(shared, active, experts)
    gate = scale if scale_gate else 1.0
    factors = {"gate_proj": gate, "up_proj": scale, "down_proj": scale**2 / gate}
    with CheckpointWriter(folder, config, shapes) as writer:
        with progress_bar("upcycling", writer.nbytes, unit="bytes") as advance:
            for name, (shape, _) in shapes.items():
                if name in dense:
                    values = source.chunks(name)
                elif name.endswith(".router.weight"):
                    values = _router(name, shape, ffn, router_logits, seed)
                else:
                    values = _copies(source, name, shape, factors)
                writer.write_chunks(name, _counted(values, advance))
        copy_tokenizer(checkpoint, writer.path)
    sizes = {name: math.prod(shape) for name, (shape, _) in shapes.items()}
    idle = sum(size * (experts - active) // experts for name, size in sizes.items() if ".experts." in name)
    return UpcycleReport(folder, config, scale, sum(sizes.values()), sum(sizes.values()) - idle)


def _config(
    source: Checkpoint, experts: int, active: int, shared: int, dense_layers: Sequence[int]
) -> SpikingBrainConfig:
    changes = {
        "num_experts": experts,
        "num_experts_per_tok": active,
        "num_shared_experts": shared,
        "moe_dense_layers": sorted(set(dense_layers)),
    }
    try:
        return SpikingBrainConfig.model_validate(source.config.model_dump() | changes)
    except ValidationError as error:
        raise ConfigError(f"invalid experts: {first_problem(error).line}", path=source.folder) from None


def _router(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], logits: float, seed: int
) -> Iterator[np.ndarray]:
    for chunk in normal(seed, name, math.prod(shape), logits * shape[1] ** -0.5):
        yield chunk.astype(dtype)


def _copies(
    source: Checkpoint, name: str, shape: tuple[int, ...], factors: Mapping[str, float]
) -> Iterator[np.ndarray]:
    """The scaled matrix of the dense FFN, repeated to fill the new tensor.

    Routed experts are stacked matrices. Shared experts form one wider FFN: the gate and up projections are
    stacked in the same way, and the down projection repeats each row.
    """
    group, projection = name.removesuffix(".weight").split(".")[-2:]
    stem = name.partition(".mlp.")[0]
    matrix = source.read(f"{stem}.mlp.{projection}.weight")
    with np.errstate(over="ignore"):
        scaled = (to_float32(matrix) * np.float32(factors[projection])).astype(matrix.dtype)
    copies = math.prod(shape) // matrix.size
    if group == "shared_experts" and projection == "down_proj":
        yield np.tile(scaled, (1, copies)).reshape(-1)
        return
    for _ in range(copies):
        yield scaled.reshape(-1)


def _counted(values: Iterator[np.ndarray], advance: Advance) -> Iterator[np.ndarray]:
    for chunk in values:
        yield chunk
        advance(chunk.nbytes)
