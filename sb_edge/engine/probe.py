"""`python -m sb_edge.engine.probe FOLDER`: load the library in a process of its own, print CPU features."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def load_backends(library_dir: Path) -> None:
    """Load the CPU backend that suits this machine, and all others, from `library_dir` (`portable` builds).

    ggml itself looks beside the running program, which here is Python.
    """
    ggml = ctypes.CDLL(str(library_dir / "libggml.so"))
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path.restype = None
    ggml.ggml_backend_load_all_from_path(str(library_dir).encode())


def system_info(library_dir: Path) -> str:
    """ggml's own list of the CPU features it was compiled for and uses."""
    if any(library_dir.glob("libggml-cpu-*.so")):
        load_backends(library_dir)
    llama = ctypes.CDLL(str(library_dir / "libllama.so"))
    llama.llama_print_system_info.restype = ctypes.c_char_p
    text: bytes = llama.llama_print_system_info()
    return text.decode().strip()


if __name__ == "__main__":
    sys.stdout.write(system_info(Path(sys.argv[1])))
