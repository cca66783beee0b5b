"""The files of the built-in models, made on first use."""

from __future__ import annotations

from pathlib import Path

from sb_edge.models.default_model import default, default_base, default_base_path, default_path
from sb_edge.models.synthetic import build_synthetic, synthetic_path

_PATHS = {"default": default_path, "default-base": default_base_path}
_BUILDERS = {"default": default, "default-base": default_base}


def model_path(name: str) -> Path:
    """Where the built-in model is, or will be."""
    return _PATHS[name]() if name in _PATHS else synthetic_path(name)


def build_model(name: str) -> Path:
    """The file of a built-in model, made if it is missing.

    Raises:
        SbEdgeError: it could not be made.
    """
    return _BUILDERS[name]() if name in _BUILDERS else build_synthetic(name)
