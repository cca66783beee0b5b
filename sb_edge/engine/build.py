"""Configuring, compiling and installing a source tree with cmake and ninja from PyPI."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import cmake
import ninja
import psutil

from sb_edge.engine.patching import git_free_environment
from sb_edge.engine.process import run_tool
from sb_edge.engine.toolchain import Toolchain
from sb_edge.system.cpu import usable_cpus
from sb_edge.util.errors import EngineError
from sb_edge.util.progress import progress_bar

CMAKE = Path(cmake.CMAKE_BIN_DIR) / "cmake"
NINJA = Path(ninja.BIN_DIR) / "ninja"

TOOLS = (
    "llama-bench",
    "sb-memory",
    "llama-server",
    "llama-quantize",
    "llama-perplexity",
    "llama-imatrix",
    "ggml-rpc-server",
    "test-backend-ops",
    "test-llama-archs",
    "test-gguf",
    "test-save-load-state",
    "test-recurrent-state-rollback",
    "test-quantize-fns",
)
"""The programs of the tree that are built, which bring all its libraries along."""

NOT_PORTABLE = ("test-quantize-fns",)
"""Programs that upstream does not build where backends are loaded at run time."""

COMMON_FLAGS = (
    "-DGGML_RPC=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=ON",
    # Both would fetch the server's page, one from the network, the other through npm.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    # Or ggml asks git for a commit and takes that of a repository around the tree.
    "-DGIT_EXE=OFF",
    # Relative, so that the finished prefix can be renamed; RPATH rather than RUNPATH, so that a
    # llama.cpp of the user's in LD_LIBRARY_PATH is not mixed in.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib",
    "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags",
    "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--disable-new-dtags",
    "-DCMAKE_MODULE_LINKER_FLAGS=-Wl,--disable-new-dtags",
)

VARIANT_FLAGS = {
    "native": ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"),
    "portable": (
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=OFF",
        "-DGGML_BACKEND_DL=ON",
        "-DGGML_CPU_ALL_VARIANTS=ON",
    ),
    "debug": (
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_C_FLAGS_DEBUG=-O1 -g",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g",
        "-DGGML_NATIVE=ON",
        *(f"-D{part}_SANITIZE_{what}=ON" for part in ("GGML", "LLAMA") for what in ("ADDRESS", "UNDEFINED")),
    ),
}

MEMORY_PER_JOB = 3 * 2**29
"""Bytes; the largest files of the server need about 1.5 GiB each to compile."""

_FOREIGN_SETTINGS = re.compile(r"(CMAKE_|NINJA_|MAKE|HF_)|(CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS)$")
_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
_CAUSE = re.compile(r"\berror: |CMake Error|undefined reference|No space left|Killed|^FAILED")


def tools_of(variant: str) -> list[str]:
    """The programs that an engine of this variant has."""
    return [tool for tool in TOOLS if variant != "portable" or tool not in NOT_PORTABLE]


def default_jobs() -> int:
    """As many compilers as there are CPUs for this process and memory for them."""
    cpus = len(usable_cpus())
    return max(1, min(cpus, psutil.virtual_memory().available // MEMORY_PER_JOB))


def build_environment(source: Path, toolchain: Toolchain) -> dict[str, str]:
    """The environment of cmake and ninja, without settings that would change the build.

    The identity of a build does not know CFLAGS, CMAKE_* and the like, so the build must not either.
    """
    environment = git_free_environment(source)
    environment = {name: value for name, value in environment.items() if not _FOREIGN_SETTINGS.match(name)}
    environment.update(CC=toolchain.cc, CXX=toolchain.cxx, NINJA_STATUS="[%f/%t] ")
    return environment


def configure(source: Path, build: Path, flags: Iterable[str], toolchain: Toolchain, log: Path) -> None:
    """Run cmake on `source`.

    Raises:
        EngineError: cmake failed; its log is named.
    """
    command: list[str | Path] = [
        CMAKE,
        "-S",
        source,
        "-B",
        build,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={NINJA}",
        *flags,
    ]
    status, tail = run_tool(command, env=build_environment(source, toolchain), log=log)
    if status != 0:
        raise _build_error("cmake could not configure the build", tail, log)


def compile_targets(
    source: Path,
    build: Path,
    targets: Sequence[str],
    toolchain: Toolchain,
    log: Path,
    *,
    jobs: int | None = None,
) -> None:
    """Run ninja in a configured `build`, with a progress bar.

    Args:
        jobs: compilers at once; None: `default_jobs()`.

    Raises:
        EngineError: a step failed; the log is named and the first errors are shown.
    """
    environment = build_environment(source, toolchain)
    command: list[str | Path] = [NINJA, "-C", build, "-j", str(jobs or default_jobs())]
    _, planned = run_tool([*command, "-n", *targets], env=environment)
    steps = [step for line in planned if (step := _STEP.match(line))]
    done = 0
    with progress_bar("building the engine", int(steps[-1][2]) if steps else None) as advance:

        def on_line(line: str) -> None:
            nonlocal done
            if step := _STEP.match(line):
                advance(int(step[1]) - done)
                done = int(step[1])

        status, tail = run_tool([*command, *targets], env=environment, log=log, on_line=on_line)
    if status != 0:
        raise _build_error("the build failed", tail, log)


def _build_error(message: str, tail: list[str], log: Path) -> EngineError:
    causes = [line.strip() for line in tail if _CAUSE.search(line)]
    text = " | ".join(causes[-3:] or tail[-1:])
    hint = "the file holds the full log"
    if "Killed" in text:
        hint = "too little memory: use fewer --jobs"
    elif "No space left" in text:
        hint = "free some space, or choose another folder by SB_EDGE_CACHE"
    return EngineError(message, path=log, found=text, hint=hint)


def install_programs(build: Path, stage: Path, programs: Iterable[str]) -> None:
    """Copy `build/bin`'s programs to `stage/bin` and its shared libraries, links included, to `stage/lib`.

    Backends that ggml loads at run time (`portable`) are looked for beside the program, hence the links.

    Raises:
        EngineError: a program was not built.
    """
    (stage / "bin").mkdir()
    (stage / "lib").mkdir()
    for program in programs:
        built = build / "bin" / program
        if not built.is_file():
            raise EngineError("was not built", path=built, hint="it is on the list of programs to install")
        shutil.copy2(built, stage / "bin" / program)
    for library in sorted((build / "bin").glob("lib*.so*")):
        shutil.copy2(library, stage / "lib" / library.name, follow_symlinks=False)
    for backend in _run_time_backends(build, stage):
        (stage / "bin" / backend).symlink_to(Path("..", "lib", backend))


def _run_time_backends(build: Path, stage: Path) -> list[str]:
    cache = (build / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")
    if not re.search(r"^GGML_BACKEND_DL:BOOL=ON$", cache, re.MULTILINE):
        return []
    names = [library.name for library in (stage / "lib").glob("libggml-*.so")]
    return sorted(name for name in names if not name.startswith("libggml-base"))


def install_python(top: Path, tree: Path, stage: Path) -> None:
    """Copy the pure Python packages of the same tree: the bindings `llama_cpp` and `gguf`."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so*")
    shutil.copytree(top / "llama_cpp", stage / "python" / "llama_cpp", ignore=ignore)
    shutil.copytree(tree / "gguf-py" / "gguf", stage / "python" / "gguf", ignore=ignore)


def install_licences(top: Path, tree: Path, stage: Path) -> None:
    """Copy the licence of every part that ends up in the prefix, under the path it has in the source."""
    parts = [top / "LICENSE.md", tree / "LICENSE", tree / "gguf-py" / "LICENSE"]
    parts += sorted((tree / "licenses").glob("*")) + sorted((tree / "vendor").rglob("LICENSE*"))
    for licence in parts:
        if licence.is_file():
            target = stage / "licences" / licence.relative_to(top)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(licence, target)
