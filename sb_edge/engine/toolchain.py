"""The compilers, and what they say about this machine."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass

from sb_edge.util.errors import EngineError
from sb_edge.util.hashes import sha256_of_bytes


@dataclass(frozen=True)
class Toolchain:
    """The compilers of a build.

    Attributes:
        cc: the C compiler, as `CC` would spell it.
        cxx: the C++ compiler.
        version: what both say of themselves.
        native_target: SHA-256 of all that the C++ compiler predefines when it compiles for this very CPU.
            It names exactly the instruction sets that `GGML_NATIVE` uses; flags in /proc/cpuinfo do not.
    """

    cc: str
    cxx: str
    version: str
    native_target: str


def find_toolchain() -> Toolchain:
    """The compilers named by CC and CXX, or the system's `cc` and `c++`.

    Raises:
        EngineError: there is none, or it does not run.
    """
    return _describe(os.environ.get("CC", "").strip() or "cc", os.environ.get("CXX", "").strip() or "c++")


@functools.cache
def _describe(cc: str, cxx: str) -> Toolchain:
    versions = [_run(compiler, "--version").partition("\n")[0] for compiler in (cc, cxx)]
    return Toolchain(cc, cxx, "; ".join(dict.fromkeys(versions)), _native_target(cxx))


def _native_target(cxx: str) -> str:
    for flag in ("-march=native", "-mcpu=native"):
        try:
            macros = _run(cxx, flag, "-dM", "-E", "-x", "c++", os.devnull)
        except EngineError:
            continue
        return sha256_of_bytes("\n".join(sorted(macros.splitlines())).encode())
    return f"{platform.machine()}, no native target"


def _run(compiler: str, *arguments: str) -> str:
    hint = "install a C++ compiler (Debian, Ubuntu: `apt install g++`), or set CC and CXX"
    command = shlex.split(compiler)
    if shutil.which(command[0]) is None:
        raise EngineError("no compiler found", item=compiler, hint=hint)
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EngineError(
            f"`{compiler} {arguments[0]}` failed", found=done.stderr.strip().partition("\n")[0], hint=hint
        )
    return done.stdout
