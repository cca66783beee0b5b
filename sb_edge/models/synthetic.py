"""The names that stand for built-in models wherever `sb-edge bench` expects one; built on first use."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from sb_edge.bench.baselines.lfm2 import write_lfm2_gguf
from sb_edge.bench.baselines.llama import write_llama_gguf
from sb_edge.bench.baselines.rwkv7 import write_rwkv7_gguf
from sb_edge.bench.speed.plan import BenchModel
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import init_checkpoint
from sb_edge.engine import cache_root
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantize
from sb_edge.util.files import require_free_space

RECIPE = 1
"""Part of the file names; raised when a model is made differently, so that no older file is taken for it."""

WORK_BYTES = 7 * 2**30
"""Free space that building a model takes: for `1b` a bfloat16 checkpoint, a bfloat16 GGUF and the result."""

QTYPE = "Q4_0"

BUILT_IN = ("1b", "llama-1b", "lfm2-1.2b", "rwkv7-1.5b")
"""Random weights, Q4_0. Preset `1b` and the shape of Llama-3.2-1B differ in the attention alone; LFM2-1.2B
(convolutions and some attention) and RWKV7-World-1.5B (linear) are shapes that one might run instead."""

BASELINES = {"base": "default-base", **{name: name for name in BUILT_IN[1:]}}
"""`--baseline`: its choices, and the model names that they stand for."""

TWINS = {"default": "base", "1b": "llama-1b"}
"""Model names and the baseline that each is compared with unless told otherwise."""


def resolve_model(name: str) -> BenchModel:
    """The model that `name` stands for: one of `BUILT_IN`, what `resolve_gguf` knows, or a path.

    Raises:
        GgufError: no such file.
        SbEdgeError: a built-in model could not be built.
    """
    if name in BUILT_IN:
        return BenchModel(name, _build_once(name))

    path = resolve_gguf(name)
    return BenchModel(path.stem if Path(name).suffix == ".gguf" else name, path)


def default_baselines(names: Sequence[str]) -> list[str]:
    """The baselines of those models that have one."""
    return list(dict.fromkeys(TWINS[name] for name in names if name in TWINS))


def _build_once(name: str) -> Path:
    folder = cache_root() / "models"
    target = folder / f"{name}-r{RECIPE}-{QTYPE}.gguf"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{target.name}.lock"):
        if not target.is_file():
            require_free_space(folder, WORK_BYTES, f"building the model {name}")
            with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=folder) as work:
                _build(name, Path(work), target)
    return target


def _build(name: str, work: Path, target: Path) -> None:
    unquantized = work / "unquantized.gguf"
    if name == "llama-1b":
        write_llama_gguf(unquantized, "bf16")
    elif name == "lfm2-1.2b":
        write_lfm2_gguf(unquantized, "f16")
    elif name == "rwkv7-1.5b":
        write_rwkv7_gguf(unquantized, "f16")
    else:
        init_checkpoint(name, work / "checkpoint")
        convert_checkpoint(work / "checkpoint", unquantized, outtype="bf16")
    quantize(unquantized, target, QTYPE)
