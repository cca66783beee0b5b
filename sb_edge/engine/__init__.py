"""The patched llama.cpp: built once, kept in a cache by content, loaded at run time."""

from sb_edge.engine.prefix import (
    VARIANTS,
    Engine,
    EngineInfo,
    activate,
    build_engine,
    find_engine,
    open_engine,
)

__all__ = [
    "VARIANTS",
    "Engine",
    "EngineInfo",
    "activate",
    "build_engine",
    "find_engine",
    "open_engine",
]
