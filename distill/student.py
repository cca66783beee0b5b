"""The student: the base's network with GLA in some layers, its trained parameters, and its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.tensors import TensorSpec, attention_prefixes, expected_tensors
from sb_edge.convert.adapter_file import write_adapter_file
from sb_edge.convert.checkpoint.safetensors_file import DTYPES
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.convert.transplant import NORM_SCALE, new_parameter, student_config
from sb_edge.distill.adapters import AdaptedProjection
from sb_edge.distill.base import Base, gla_layers_of, use_fused_attention
from sb_edge.gguf.floats import encoder
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import CheckpointError


def make_student(
    base: Base,
    gla_layers: Sequence[int] | None,
    *,
    window: int,
    seed: int,
    kept_heads: Sequence[tuple[int, int]] = (),
) -> SpikingBrain:
    """An untrained student, as `convert.transplant` makes it; what it has in common with its base it shares.

    Only the GLA layers' attention has gradients.

    Args:
        base: the teacher.
        gla_layers: None: the even ones.
        window: Window of the other layers in tokens.
        seed: Random seed for the gates' first projections.
        kept_heads: as in `student_config`.

    Raises:
        ConfigError: a layer or a head that the base does not have.
    """
    config = student_config(base.reader, gla_layers, window, kept_heads)
    with torch.device("meta"):
        model = SpikingBrain(config, base.layout)
    shared = base.model.state_dict()
    gla = attention_prefixes(gla_layers_of(config))
    weights = {}
    for name, spec in _table(base, config).items():
        fresh = new_parameter(base.reader, config, name, spec.shape, seed, NORM_SCALE)
        if fresh is not None:
            weights[name] = torch.from_numpy(fresh.astype(np.float32)).to(shared["model.norm.weight"])
        else:
            weights[name] = shared[name].clone() if name.startswith(gla) else shared[name]
    model.load_state_dict(weights, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(gla))
    use_fused_attention(model)
    return model.eval()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with gradients, by their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merged_weights(model: SpikingBrain, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors, adapters merged into the projections that they belong to."""
    modules = dict(model.named_modules())
    weights = model.state_dict()
    for name in names:
        module = modules[name.rpartition(".")[0]]
        adapted = isinstance(module, AdaptedProjection) and name.endswith(".weight")
        with torch.no_grad():
            yield name, module.merged() if adapted else weights[name]


def write_student(base: Base, model: SpikingBrain, folder: Path, dtype: str) -> None:
    """Write a checkpoint in the public layout, with the base's tokenizer; complete or not at all.

    Args:
        base: Base model of the student.
        model: the student.
        folder: must not exist, or be empty.
        dtype: "f32", "f16" or "bf16".

    Raises:
        CheckpointError: a value is not finite, or does not fit the type.
        OutputError: the folder exists, or cannot be written.
    """
    table = _table(base, model.config)
    target = DTYPES[dtype.upper()]
    encode = encoder(dtype)
    with CheckpointWriter(
        folder, model.config, {n: (spec.shape, target) for n, spec in table.items()}
    ) as out:
        for name, values in merged_weights(model, list(table)):
            wide = values.float().cpu().contiguous().numpy()
            stored = encode(wide.reshape(-1))
            if stored is None or not np.isfinite(wide).all():
                raise CheckpointError(
                    f"a tensor holds NaN or infinity, or does not fit {dtype}", path=folder, item=name
                )
            out.write(name, stored.view(target).reshape(table[name].shape))
        base.reader.write_tokenizer(out.path)


def write_trained(base: Base, model: SpikingBrain, path: Path) -> None:
    """Write the trained parameters alone, as an adapter file.

    Raises:
        OutputError: the file cannot be written.
    """
    values = {
        name: parameter.detach().float().cpu().numpy()
        for name, parameter in trained_parameters(model).items()
    }
    config = model.config
    write_adapter_file(
        path, values, base=base.sha256, gla_layers=gla_layers_of(config), window=config.sliding_window
    )


def _table(base: Base, config: SpikingBrainConfig) -> dict[str, TensorSpec]:
    return expected_tensors(
        config, attention_bias=base.layout.attention_bias, gate_rank=base.layout.gate_rank
    )
