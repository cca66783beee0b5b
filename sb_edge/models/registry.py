"""The built-in models by name: the one resolver of all commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sb_edge.util.errors import GgufError

BUILT_IN = {
    "default": "SpikingBrain student of SmolLM2-135M-Instruct, Q8_0",
    "default-base": "SmolLM2-135M-Instruct, Q4_1",
    "1b": "preset 1b: the shape of Llama-3.2-1B with SpikingBrain's layers, random weights, Q4_0",
    "llama-1b": "shape of Llama-3.2-1B, random weights, Q4_0",
    "lfm2-1.2b": "shape of LFM2-1.2B (convolutions and some attention), random weights, Q4_0",
    "rwkv7-1.5b": "shape of RWKV7-World-1.5B (linear attention), random weights, Q4_0",
}
"""Names and descriptions."""

BASELINES = {
    "base": "default-base",
    "llama-1b": "llama-1b",
    "lfm2-1.2b": "lfm2-1.2b",
    "rwkv7-1.5b": "rwkv7-1.5b",
}
"""`--baseline`: its choices, and the model names that they stand for."""

TWINS = {"default": "base", "1b": "llama-1b"}
"""Model names and their default baselines."""


def resolve_gguf(name_or_path: str | Path) -> Path:
    """A GGUF by its path, or a built-in model by its name.

    Raises:
        GgufError: neither; or a built-in model could not be made.
        SbEdgeError: a built-in model could not be built.
    """
    if str(name_or_path) in BUILT_IN:
        from sb_edge.models.builders import build_model  # loads what converts and quantizes

        return build_model(str(name_or_path))
    path = Path(name_or_path)
    if path.is_dir():
        raise GgufError(
            "is a folder",
            path=path,
            expected="a GGUF file",
            hint="`sb-edge convert` makes one of a checkpoint",
        )
    if not path.exists():
        raise GgufError(
            "not found", path=path, hint=f"give a GGUF file, or a built-in model: {', '.join(BUILT_IN)}"
        )
    return path


def resolve_base(base: Path) -> Path:
    """A base to train from: a checkpoint folder or a GGUF where there is one, else as `resolve_gguf`."""
    return base if base.exists() else resolve_gguf(base)


def default_baselines(names: Sequence[str]) -> list[str]:
    """The baselines of those models that have one."""
    return list(dict.fromkeys(TWINS[name] for name in names if name in TWINS))
