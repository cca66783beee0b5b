"""From a Transformer to a SpikingBrain checkpoint (report, section 3.1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.tensors import expected_tensors
from sb_edge.convert.adapter_file import Delta, read_delta
from sb_edge.convert.checkpoint.base_model import BaseModelReader, fingerprint, open_base
from sb_edge.convert.checkpoint.random_weights import normal
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.util.errors import CheckpointError, ConfigError, GgufError
from sb_edge.util.progress import progress_bar

DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

Origin = Literal["base", "new", "trained"]

GATE_RANK = 16
GATE_BIAS = 0.0
"""Every gate starts as a constant: log a = logsigmoid(0)/16 = -0.043, a state that halves in 16 tokens."""

NORM_SCALE = 0.2
"""Attention outputs of SmolLM2-135M-Instruct are 0.12 to 0.34 times as large as its values would be for white
inputs, 0.2 in most layers: averaging over tokens shrinks them."""


@dataclass(frozen=True)
class TransplantReport:
    """What a transplant made.

    Attributes:
        folder: the checkpoint.
        config: its configuration.
        n_copied: tensors taken over from the base.
        n_new: tensors that the base does not have: gates and per-head norms, untrained.
        n_trained: tensors that a delta holds or changes.
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
    """Make a SpikingBrain checkpoint that keeps everything of a base model but its attention.

    Layers of both kinds take the base's q, k, v and o projections; FFNs, norms and embeddings are kept. A GLA
    layer gets a low-rank gate, constant at the start, and a per-head norm; they are untrained, so the more
    layers become GLA, the less of the base's quality is left before distillation.

    Args:
        base: a Llama- or Qwen2-shaped checkpoint folder or GGUF.
        folder: the checkpoint to write; must not exist.
        gla_layers: the layers that become GLA; None: the even ones, as in the 7B.
        window: of the other layers.
        dtype: "f32", "f16" or "bf16".
        seed: of the gates' first projection.
        norm_scale: the per-head norm's weights, relative to the size that the layer's values would have for
            white inputs (channel by channel, over all heads).
        ignore_rope_scaling: drop the base's scaling of rotary frequencies instead of refusing it.
        trained: the delta of a distillation of this base, whose window counts then; `gla_layers` are some of
            its layers, None: all.

    Raises:
        CheckpointError, ConfigError, GgufError: base or delta is missing, damaged, of another shape, or they
            do not belong together.
        OutputError: the folder exists or cannot be written.
    """
    source = open_base(base)
    refuse_scaling(source, ignore_rope_scaling)
    delta = None if trained is None else read_delta(trained)
    if delta is not None:
        delta = delta if gla_layers is None else delta.of_layers(gla_layers)
        gla_layers, window = delta.gla_layers, delta.window
    config = student_config(source, gla_layers, window)
    bias = source.has("model.layers.0.attn.q_proj.bias")
    table = expected_tensors(config, attention_bias=bias, gate_rank=GATE_RANK)
    target = DTYPES[dtype]
    shapes = {name: (spec.shape, target) for name, spec in table.items()}
    if delta is not None:
        delta.require(fingerprint(base), table)
    origins: Counter[Origin] = Counter()
    with (
        CheckpointWriter(folder, config, shapes) as writer,
        progress_bar("transplanting", sum(math.prod(shape) for shape, _ in shapes.values())) as advance,
    ):
        for name, spec in table.items():
            origin, values = _tensor(source, delta, config, name, spec.shape, seed, norm_scale)
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
    delta: Delta | None,
    config: SpikingBrainConfig,
    name: str,
    shape: tuple[int, ...],
    seed: int,
    norm_scale: float,
) -> tuple[Origin, np.ndarray]:
    """A tensor of the student, float32, and where it comes from."""
    if delta is not None and name in delta.tensors:
        return "trained", delta.whole(name, shape)
    fresh = new_parameter(source, config, name, shape, seed, norm_scale)
    if fresh is None:
        values = source.read(name, shape)
        added = None if delta is None else delta.addition(name, shape)
        return ("base", values) if added is None else ("trained", values + added)
    if delta is not None:
        raise GgufError("a tensor is missing", path=delta.path, item=name)
    return "new", fresh


def refuse_scaling(source: BaseModelReader, ignore: bool) -> None:
    """Refuse scaled rotary frequencies, unless told to drop them.

    Raises:
        ConfigError: the base has them.
    """
    if source.shape.rope_scaling and not ignore:
        raise ConfigError(
            "scaled rotary frequencies are not supported",
            path=source.path,
            item="rope_scaling",
            hint="--ignore-rope-scaling drops them; within the window that changes the model a little",
        )


def student_config(
    source: BaseModelReader, gla_layers: Sequence[int] | None, window: int
) -> SpikingBrainConfig:
    """The configuration of a base's transplant; arguments as `transplant`.

    Raises:
        ConfigError: a layer that the base does not have.
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
    return SpikingBrainConfig(
        **shape.model_dump(exclude={"rope_scaling"}),
        sliding_window=window,
        attn_layers=[layer for layer in layers if layer not in gla],
    )


def new_parameter(
    source: BaseModelReader,
    config: SpikingBrainConfig,
    name: str,
    shape: tuple[int, ...],
    seed: int,
    norm_scale: float,
) -> np.ndarray | None:
    """A GLA layer's own parameters before training, float32; None for a tensor that the base has.

    Args:
        source: the base.
        config: of the student.
        name: of the tensor, in the student.
        shape: of the tensor.
        seed, norm_scale: as `transplant`.
    """
    if name.endswith(".g_norm.weight"):
        return norm_scale * _value_size(source, config, name.removesuffix("attn.g_norm.weight"))
    if name.endswith(".gk_proj.0.weight"):
        pieces = [piece.copy() for piece in normal(seed, name, math.prod(shape), shape[1] ** -0.5)]
        return np.concatenate(pieces).reshape(shape)
    if name.endswith(".gk_proj.1.weight"):
        # Zero, as in low-rank adapters: training moves the gate away from its constant.
        return np.zeros(shape, np.float32)
    if name.endswith(".gk_proj.1.bias"):
        return np.full(shape, GATE_BIAS, np.float32)
    return None


def _value_size(source: BaseModelReader, config: SpikingBrainConfig, layer: str) -> np.ndarray:
    """[d]: the RMS, over heads, of the channels of v for normalised inputs with independent channels."""
    projection = source.read(layer + "attn.v_proj.weight", (config.kv_dim, config.hidden_size))
    norm = source.read(layer + "attn_norm.weight", (config.hidden_size,))
    variance = np.square(projection * norm).sum(axis=1).reshape(config.num_key_value_heads, config.head_dim)
    size: np.ndarray = np.sqrt(variance.mean(axis=0))
    return size
