"""SpikingBrain language models on ordinary CPUs: convert, run, chat, measure."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb_edge.api import Chat, Sampling, convert, generate, load, quantize, stream_generate

__version__ = "0.1.0"

__all__ = ["Chat", "Sampling", "__version__", "convert", "generate", "load", "quantize", "stream_generate"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `import sb_edge` stays cheap."""
    if name == "convert":
        return importlib.import_module("sb_edge.convert")  # callable
    if name in __all__:
        return getattr(importlib.import_module("sb_edge.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
