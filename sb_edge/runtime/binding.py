"""The engine's library: loading it, hearing its log, and ggml's types by name."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from functools import cache
from typing import Any

from sb_edge.engine import activate
from sb_edge.engine.process import without_function
from sb_edge.util.errors import InferenceError

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""ggml's numbers of the types that a KV cache can have."""

_LEVEL_DEBUG = 1
_LEVEL_WARN = 3
_LEVEL_CONTINUE = 5

_log: deque[str] = deque(maxlen=400)
_problems: deque[str] = deque(maxlen=20)


@cache
def library() -> Any:
    """llama-cpp-python's low-level module, bound to the built engine, with its log captured.

    Raises:
        EngineError: the engine is not built.
    """
    activate()
    # An abort of the engine would start a debugger on this process to print a backtrace.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    from llama_cpp import llama_cpp

    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def ggml_base() -> ctypes.CDLL:
    """libggml-base, for reading tensors of a graph."""
    base, pointer = engine_library("ggml-base"), ctypes.c_void_p
    typed(base, "ggml_get_name", ctypes.c_char_p, pointer)
    typed(base, "ggml_nelements", ctypes.c_int64, pointer)
    typed(base, "ggml_nrows", ctypes.c_int64, pointer)
    typed(base, "ggml_element_size", ctypes.c_size_t, pointer)
    typed(base, "ggml_backend_tensor_get", None, pointer, pointer, ctypes.c_size_t, ctypes.c_size_t)
    return base


def typed(lib: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """A function of a library, with the types of its result and its arguments."""
    function = getattr(lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def cpu_function(name: str, result: Any, *arguments: Any) -> Any:
    """As `typed`, a function that the CPU backend names; a portable engine has several such backends.

    Raises:
        InferenceError: the engine has no such function.
    """
    pointer = ctypes.c_void_p
    find = typed(ggml_base(), "ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
    address = find(_cpu_backend(), name.encode())
    if not address:
        raise InferenceError("symbol not found in the CPU backend", item=name)
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def cpu_device() -> int:
    """ggml's device of the CPU."""
    pointer = ctypes.c_void_p
    get = typed(ggml_base(), "ggml_backend_reg_dev_get", pointer, pointer, ctypes.c_size_t)
    return int(get(_cpu_backend(), 0))


def _cpu_backend() -> int:
    library()
    find = typed(engine_library("ggml"), "ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
    return int(find(b"CPU"))


def recent_log() -> list[str]:
    """The engine's last log lines."""
    return list(_log)


def clear_log() -> None:
    """Forget the log, so that what follows belongs to the next call."""
    _log.clear()
    _problems.clear()


def last_problem() -> str | None:
    """The engine's last warning or error since `clear_log`, without its function name."""
    return without_function(_problems[-1]) if _problems else None


def first_problem() -> str | None:
    """The engine's first warning or error since `clear_log`, shortened: what follows is its consequence."""
    return without_function(_problems[0])[:200] if _problems else None


def kv_type(name: str) -> int:
    """ggml's number of a KV cache type.

    Raises:
        InferenceError: no such type.
    """
    try:
        return KV_TYPES[name]
    except KeyError:
        raise InferenceError(
            "unknown KV cache type", found=repr(name), expected=", ".join(KV_TYPES)
        ) from None


def engine_library(name: str) -> ctypes.CDLL:
    """One of the engine's libraries: "ggml", "ggml-base"."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    return ctypes.CDLL(str(activate().library_dir / f"lib{name}.{suffix}"))


def _remember(level: int, text: bytes | None, _user_data: object) -> None:
    line = (text or b"").decode("utf-8", "replace").rstrip("\n")
    if os.environ.get("SB_EDGE_DEBUG") or os.environ.get("SB_EDGE_VERBOSE"):
        sys.stderr.write((text or b"").decode("utf-8", "replace"))
    if level in (_LEVEL_DEBUG, _LEVEL_CONTINUE) or not line:
        return
    _log.append(line)
    if level >= _LEVEL_WARN:
        _problems.append(line)


# The engine keeps the pointer, so the callback object must live as long as the process.
_on_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_remember)
