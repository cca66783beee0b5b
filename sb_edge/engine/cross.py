"""Static programs for 64-bit Arm phones and boards, cross-compiled with zig and cached by content."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.engine import build as steps
from sb_edge.engine import zig as zig_wrapper
from sb_edge.engine.patching import load_patches
from sb_edge.engine.prefix import BuildSite, Built, Engine, Recipe, build_once, find_built
from sb_edge.engine.source import patches_folder, read_upstream
from sb_edge.engine.toolchain import Toolchain
from sb_edge.util.errors import EngineError
from sb_edge.util.hashes import sha256_of
from sb_edge.util.user_cache import cache_root

VARIANT = "arm64"
PROGRAMS = ("sb-device", "test-backend-ops")

LIBRARY_LICENCES = (
    "libc/musl/COPYRIGHT",
    "libcxx/LICENSE.TXT",
    "libcxxabi/LICENSE.TXT",
    "libunwind/LICENSE.TXT",
)
"""Licences of the C and C++ libraries that are linked in, in zig's `lib`."""

FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGIT_EXE=OFF",
    # musl gives threads 128 KiB otherwise.
    "-DCMAKE_EXE_LINKER_FLAGS=-static -s -Wl,-z,stack-size=8388608",
)


@dataclass(frozen=True)
class CpuVariant:
    """Instruction set of a build.

    Attributes:
        name: Suffix of the programs.
        arch: GGML_CPU_ARM_ARCH.
        features: Names in /proc/cpuinfo that a CPU must have.
    """

    name: str
    arch: str
    features: frozenset[str]


VARIANTS = (
    CpuVariant("armv8.0", "armv8-a", frozenset()),
    CpuVariant("armv8.2", "armv8.2-a+dotprod+fp16", frozenset({"asimddp", "asimdhp"})),
    CpuVariant("armv8.6", "armv8.6-a+dotprod+fp16+i8mm", frozenset({"asimddp", "asimdhp", "i8mm"})),
)
"""From the oldest to the newest. No SVE: it is slower on phones and reported wrong on some servers."""


def choose_variant(features: Iterable[str]) -> CpuVariant:
    """The newest variant that a CPU with these features (of /proc/cpuinfo) can execute."""
    present = frozenset(features)
    return next(variant for variant in reversed(VARIANTS) if variant.features <= present)


@dataclass(frozen=True)
class CrossRecipe(Recipe):
    """Build inputs of the device programs."""

    device: Path
    zig: Path
    zig_version: str

    @property
    def name(self) -> str:
        """The prefix's name in the cache."""
        return f"{VARIANT}-{self.key}"

    @property
    def flags(self) -> list[str]:
        """cmake's, without those of a variant."""
        return [*FLAGS, *self.identity_flags]

    @property
    def compiler(self) -> str:
        """Name and version of the compiler."""
        return f"zig {self.zig_version} {' '.join(zig_wrapper.TARGET)}"

    def other_inputs(self) -> dict[str, Any]:
        """The variants, and the files of the device program and of the compiler's wrapper."""
        files = sorted(file for file in self.device.iterdir() if file.is_file())
        return {
            "device": {file.name: sha256_of(file) for file in [*files, Path(zig_wrapper.__file__)]},
            "variants": [variant.arch for variant in VARIANTS],
        }


def make_cross_recipe() -> CrossRecipe:
    """The recipe of this installation of sb-edge.

    Raises:
        EngineError: damaged patches, or no zig.
    """
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise EngineError(
            "the cross compiler is not installed",
            item="ziglang",
            hint="install it: `pip install sb-edge[phone]`",
        )
    folder = patches_folder()
    return CrossRecipe(
        read_upstream(folder / "UPSTREAM"),
        load_patches(folder),
        folder / "device",
        Path(spec.origin).parent / "zig",
        importlib.metadata.version("ziglang"),
    )


def device_program(engine: Engine, variant: CpuVariant, name: str = "sb-device") -> Path:
    """A program of a cross-built engine.

    Raises:
        EngineError: missing, or not the file that was built.
    """
    return engine.tool(f"{name}-{variant.name}")


def find_cross() -> Engine:
    """The engine that `build_cross` made.

    Raises:
        EngineError: it has not been built.
    """
    hint = "run `sb-edge engine build --target arm64`"
    return find_built(make_cross_recipe(), EngineError("the programs for arm64 are not built", hint=hint))


def build_cross(jobs: int | None = None, *, force: bool = False) -> Engine:
    """Build the device programs of all variants, or find them in the cache.

    Args:
        jobs: Number of parallel compilers; None: by CPUs and free memory.
        force: Build again even if it is in the cache.

    Raises:
        EngineError: fetching, patching, configuring or compiling failed.
        OutputError: too little space.
    """
    recipe = make_cross_recipe()
    return build_once(recipe, lambda site: _build(recipe, site, jobs), force=force)


def _build(recipe: CrossRecipe, site: BuildSite, jobs: int | None) -> Built:
    toolchain = _write_toolchain(recipe, site.work, cache_root() / "zig")
    binutils = [f"-DCMAKE_{tool.upper()}={site.work / tool}" for tool in ("ar", "ranlib")]
    build, programs = site.work / "build", site.stage / "bin"
    programs.mkdir()
    for variant in VARIANTS:  # the first compiles everything, each other only ggml's kernels
        flags = [*recipe.flags, *binutils, f"-DTREE={site.tree}", f"-DGGML_CPU_ARM_ARCH={variant.arch}"]
        steps.configure(recipe.device, build, flags, toolchain, site.log)
        steps.compile_targets(site.tree, build, PROGRAMS, toolchain, site.log, jobs=jobs)
        for program in PROGRAMS:
            shutil.copy2(build / "bin" / program, programs / f"{program}-{variant.name}")
    _install_library_licences(recipe.zig.parent / "lib", site.stage / "licences")
    return Built(VARIANT, cpu="any ARMv8-A", cpu_features=[variant.arch for variant in VARIANTS])


def _write_toolchain(recipe: CrossRecipe, work: Path, cache: Path) -> Toolchain:
    """Scripts that cmake calls as compilers and binutils; zig keeps its libc and libc++ in `cache`."""
    wrapper = [sys.executable, "-I", "-S", zig_wrapper.__file__, str(recipe.zig)]
    commands = {
        "cc": [*wrapper, "cc"],
        "c++": [*wrapper, "c++"],
        "ar": [str(recipe.zig), "ar"],
        "ranlib": [str(recipe.zig), "ranlib"],
    }
    for name, command in commands.items():
        script = work / name
        script.write_text(
            "#!/bin/sh\n"
            f"export ZIG_GLOBAL_CACHE_DIR={shlex.quote(str(cache))}\n"
            f"export ZIG_LOCAL_CACHE_DIR={shlex.quote(str(work / 'zig'))}\n"
            f'exec {shlex.join(command)} "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
    return Toolchain(str(work / "cc"), str(work / "c++"), recipe.compiler, "any")


def _install_library_licences(lib: Path, target: Path) -> None:
    """Copy `LIBRARY_LICENCES`, and zig's own, which covers its compiler runtime."""
    for name in LIBRARY_LICENCES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lib / name, target / name)
    shutil.copyfile(lib.parent / "LICENSE", target / "zig-LICENSE")
