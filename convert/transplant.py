"""Transplant a Transformer into a SpikingBrain checkpoint (report, section 3.1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.tensors import expected_tensors
from sb_edge.convert.adapter_file import AdapterFile, read_adapter_file
from sb_edge.convert.checkpoint.base_model import BaseModelReader, fingerprint, open_base
from sb_edge.convert.checkpoint.random_weights import normal
from sb_edge.convert.checkpoint.safetensors_file import DTYPES
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.memory.check import require_working_memory
from sb_edge.util.errors import CheckpointError, ConfigError, GgufError
from sb_edge.util.progress import progress_bar
from sb_edge.util.validation import first_problem

Origin = Literal["base", "new", "trained"]

GATE_RANK = 16
GATE_BIAS = 0.0
"""Initial gate logits. Each gate starts as a constant: log a = logsigmoid(0) / 16 = -0.043, so that a state
halves in 16 tokens."""

NORM_SCALE = 0.2
"""Initial size of attention outputs relative to values of white inputs. Averaging over tokens shrinks them:
the ratio is 0.12 to 0.34 in SmolLM2-135M-Instruct, and 0.2 in most of its layers."""


@dataclass(frozen=True)
class TransplantReport:
    """Result of a transplant.

    Attributes:
        folder: the checkpoint.
        config: its configuration.
        n_copied: number of tensors copied from the base.
        n_new: number of untrained tensors that the base does not have: gates and per-head norms.
        n_trained: number of tensors that the adapter file holds or changes.
    """

    folder: Path
    config: SpikingBrainConfig
    n_copied: int
    n_new: int
    n_trained: int


def transplant(
    base: Path,
    folder: Path,
    *,
    gla_layers: Sequence[int] | None = None,
    window: int = 4096,
    dtype: str = "bf16",
    seed: int = 0,
    norm_scale: float = NORM_SCALE,
    ignore_rope_scaling: bool = False,
    trained: Path | None = None,
) -> TransplantReport:
    """Write a SpikingBrain checkpoint with the weights of a base model.

    All layers keep the base's q, k, v and o projections, FFNs, norms and embeddings. A GLA layer also gets a
    low-rank gate, initially constant, and a per-head norm. Both are untrained: the more layers become GLA,
    the less of the base's quality remains before distillation.

    Args:
        base: a Llama- or Qwen2-shaped checkpoint folder or GGUF.
        folder: checkpoint to write; must not exist.
        gla_layers: layers that become GLA; None: the even ones, as in the 7B.
        window: attention window of the other layers, tokens.
        dtype: "f32", "f16" or "bf16".
        seed: random seed for the first projection of the gates.
        norm_scale: weights of the per-head norms relative to the size of the layer's values for white inputs
            (by channel, over all heads).
        ignore_rope_scaling: drop the base's scaling of rotary frequencies instead of refusing it.
        trained: adapter file of a distillation of this base; its window replaces `window`, and `gla_layers`
            selects some of its layers (None: all).

    Raises:
        CheckpointError, ConfigError, GgufError: base or adapter file is missing, damaged or has other shapes,
            or they do not belong together.
        OutputError: the folder exists or cannot be written.
    """
    source = open_base(base)
    refuse_scaling(source, ignore_rope_scaling)
    adapter = None if trained is None else read_adapter_file(trained)
    if adapter is not None:
        adapter = adapter if gla_layers is None else adapter.of_layers(gla_layers)
        gla_layers, window = adapter.gla_layers, adapter.window
    config = student_config(source, gla_layers, window)
    bias = source.has("model.layers.0.attn.q_proj.bias")
    table = expected_tensors(config, attention_bias=bias, gate_rank=GATE_RANK)
    target = DTYPES[dtype.upper()]
    shapes = {name: (spec.shape, target) for name, spec in table.items()}
    if adapter is not None:
        adapter.require(fingerprint(base), table)
    # A value is held as float32, as stored, as float32 again, and with a flag.
    bytes_each = 4 + target.itemsize + 4 + 1
    largest = max(math.prod(shape) for shape, _ in shapes.values())
    require_working_memory(bytes_each * largest, "the largest tensor", base)
    origins: Counter[Origin] = Counter()
    with (
        CheckpointWriter(folder, config, shapes) as writer,
        progress_bar("transplanting", sum(math.prod(shape) for shape, _ in shapes.values())) as advance,
    ):
        for name, spec in table.items():
            origin, values = _tensor(source, adapter, config, name, spec.shape, seed, norm_scale)
            origins[origin] += 1
            with np.errstate(over="ignore"):
                stored = values.astype(target)
            if not np.isfinite(stored.astype(np.float32)).all():
                raise CheckpointError(
                    f"a tensor holds NaN or infinity, or does not fit {dtype}", path=base, item=name
                )
            writer.write(name, stored)
            advance(values.size)
        source.write_tokenizer(writer.path)
    return TransplantReport(folder, config, origins["base"], origins["new"], origins["trained"])


def _tensor(
    source: BaseModelReader,
    adapter: AdapterFile | None,
    config: SpikingBrainConfig,
    name: str,
    shape: tuple[int, ...],
    seed: int,
    norm_scale: float,
) -> tuple[Origin, np.ndarray]:
    """A tensor of the student, float32, and its origin."""
    if adapter is not None and name in adapter.tensors:
        return "trained", adapter.whole(name, shape)
    fresh = new_parameter(source, config, name, shape, seed, norm_scale)
    if fresh is None:
        values = source.read(name, shape)
        added = None if adapter is None else adapter.addition(name, shape)
        return ("base", values) if added is None else ("trained", values + added)
    if adapter is not None:
        raise GgufError("a tensor is missing", path=adapter.path, item=name)
    return "new", fresh


def refuse_scaling(source: BaseModelReader, ignore: bool) -> None:
    """Refuse scaled rotary frequencies unless `ignore` is set.

    Raises:
        ConfigError: the base has them.
    """
    if source.shape.rope_scaling and not ignore:
        raise ConfigError(
            "scaled rotary frequencies are not supported",
            path=source.path,
            item="rope_scaling",
            hint="--ignore-rope-scaling drops them; within the window this changes the model slightly",
        )


def student_config(
    source: BaseModelReader,
    gla_layers: Sequence[int] | None,
    window: int,
    kept_heads: Sequence[tuple[int, int]] = (),
) -> SpikingBrainConfig:
    """The configuration of a base's transplant.

    Args:
        source: the base.
        gla_layers, window: as in `transplant`.
        kept_heads: layer and key/value head of heads of GLA layers that keep windowed attention.

    Raises:
        ConfigError: the base does not have a layer of `gla_layers`, or a head is not one of a GLA layer.
    """
    shape = source.shape
    layers = range(shape.num_hidden_layers)
    gla = set(layers[::2] if gla_layers is None else gla_layers)
    beyond = sorted(gla - set(layers))
    if beyond:
        raise ConfigError(
            "there is no such layer",
            path=source.path,
            item="gla_layers",
            found=beyond[0],
            expected=f"0 to {shape.num_hidden_layers - 1}",
        )
    kept = [[head for at, head in kept_heads if at == layer] for layer in layers]
    try:
        return SpikingBrainConfig(
            **shape.model_dump(exclude={"rope_scaling"}),
            sliding_window=window,
            attn_layers=[layer for layer in layers if layer not in gla],
            attn_heads=kept if kept_heads else None,
        )
    except ValidationError as error:
        raise ConfigError(first_problem(error).message, path=source.path, item="kept heads") from None


def new_parameter(
    source: BaseModelReader,
    config: SpikingBrainConfig,
    name: str,
    shape: tuple[int, ...],
    seed: int,
    norm_scale: float,
) -> np.ndarray | None:
    """Initial values of a parameter that only GLA layers have, float32; None for a tensor of the base.

    Args:
        source: the base.
        config: configuration of the student.
        name: name of the tensor in the student.
        shape: shape of the tensor.
        seed, norm_scale: as in `transplant`.
    """
    if name.endswith(".g_norm.weight"):
        return norm_scale * _value_size(source, config, name.removesuffix("attn.g_norm.weight"))
    if name.endswith(".gk_proj.0.weight"):
        chunks = [chunk.copy() for chunk in normal(seed, name, math.prod(shape), shape[1] ** -0.5)]
        return np.concatenate(chunks).reshape(shape)
    if name.endswith(".gk_proj.1.weight"):
        # Zero as in LoRA: the gate is constant until it is trained.
        return np.zeros(shape, np.float32)
    if name.endswith(".gk_proj.1.bias"):
        return np.full(shape, GATE_BIAS, np.float32)
    return None


def _value_size(source: BaseModelReader, config: SpikingBrainConfig, layer: str) -> np.ndarray:
    """RMS over heads of the channels of v for white inputs, [d]."""
    projection = source.read(layer + "attn.v_proj.weight", (config.kv_dim, config.hidden_size))
    norm = source.read(layer + "attn_norm.weight", (config.hidden_size,))
    variance = np.square(projection * norm).sum(axis=1).reshape(config.num_key_value_heads, config.head_dim)
    size: np.ndarray = np.sqrt(variance.mean(axis=0))
    return size
