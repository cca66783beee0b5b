"""Random-weight models for measuring speed, built on first use and kept in the cache."""

from __future__ import annotations

from pathlib import Path

from sb_edge.bench.baselines.lfm2 import write_lfm2_gguf
from sb_edge.bench.baselines.llama import write_llama_gguf
from sb_edge.bench.baselines.rwkv7 import write_rwkv7_gguf
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import init_checkpoint
from sb_edge.models.cache_folder import kept, models_folder
from sb_edge.quant.quantize import quantize
from sb_edge.util.files import require_free_space, scratch_folder

RECIPE = 1
"""Part of the file names; raised when a model is made differently, so that no older file is taken for it."""

WORK_BYTES = 7 * 2**30
"""Free space that building a model takes: for `1b` a bfloat16 checkpoint, a bfloat16 GGUF and the result."""

QTYPE = "Q4_0"


def synthetic_path(name: str) -> Path:
    """Where the model `name` is, or will be."""
    return models_folder() / f"{name}-r{RECIPE}-{QTYPE}.gguf"


def build_synthetic(name: str) -> Path:
    """The model `name`: "1b", "llama-1b", "lfm2-1.2b" or "rwkv7-1.5b".

    Raises:
        SbEdgeError: it could not be built.
    """
    target = synthetic_path(name)

    def build() -> None:
        require_free_space(target.parent, WORK_BYTES, f"building the model {name}")
        with scratch_folder(target) as work:
            _build(name, work, target)

    return kept(target, build)


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
