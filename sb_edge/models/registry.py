"""The built-in models by name: the one resolver of all commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sb_edge.bench.speed.plan import BenchModel
from sb_edge.models.default_model import default, default_base, default_base_path, default_path
from sb_edge.models.synthetic import build_synthetic, synthetic_path
from sb_edge.util.errors import GgufError


@dataclass(frozen=True)
class BuiltIn:
    """A built-in model.

    Attributes:
        description: What it is, in a line.
        path: Where it is, or will be.
        build: Returns its file, made if it is missing.
    """

    description: str
    path: Callable[[], Path]
    build: Callable[[], Path]


def _synthetic(name: str, description: str) -> BuiltIn:
    return BuiltIn(
        f"{description}, random weights, Q4_0", partial(synthetic_path, name), partial(build_synthetic, name)
    )


BUILT_IN = {
    "default": BuiltIn("SpikingBrain student of SmolLM2-135M-Instruct, Q8_0", default_path, default),
    "default-base": BuiltIn("SmolLM2-135M-Instruct, Q4_1", default_base_path, default_base),
    "1b": _synthetic("1b", "preset 1b: the shape of Llama-3.2-1B with SpikingBrain's layers"),
    "llama-1b": _synthetic("llama-1b", "shape of Llama-3.2-1B"),
    "lfm2-1.2b": _synthetic("lfm2-1.2b", "shape of LFM2-1.2B (convolutions and some attention)"),
    "rwkv7-1.5b": _synthetic("rwkv7-1.5b", "shape of RWKV7-World-1.5B (linear attention)"),
}

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
    model = BUILT_IN.get(str(name_or_path))
    if model is not None:
        return model.build()
    path = Path(name_or_path)
    if not path.exists():
        raise GgufError(
            "not found", path=path, hint=f"give a GGUF file, or a built-in model: {', '.join(BUILT_IN)}"
        )
    return path


def resolve_model(name: str) -> BenchModel:
    """As `resolve_gguf`, with the name under which a benchmark shows it."""
    path = resolve_gguf(name)
    return BenchModel(path.stem if Path(name).suffix == ".gguf" else name, path)


def default_baselines(names: Sequence[str]) -> list[str]:
    """The baselines of those models that have one."""
    return list(dict.fromkeys(TWINS[name] for name in names if name in TWINS))
