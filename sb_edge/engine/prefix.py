"""The built engine: its inputs, its place, and its use in this process."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cpuinfo
from pydantic import BaseModel, ConfigDict, ValidationError

from sb_edge.engine.cache import MANIFEST, BuildCache, content_key
from sb_edge.engine.patching import PatchChoice, PatchSet, apply_patches, load_patches
from sb_edge.engine.probe import load_backends
from sb_edge.engine.source import Upstream, fetch_sdist, patches_folder, read_upstream, unpack
from sb_edge.engine.toolchain import Toolchain, find_toolchain
from sb_edge.util.errors import EngineError
from sb_edge.util.files import require_free_space
from sb_edge.util.hashes import sha256_of
from sb_edge.util.user_cache import cache_root, remembered_sha256
from sb_edge.util.validation import first_problem

RECIPE = 1
"""Raised whenever the layout of a prefix changes, so that older ones are not taken for new ones."""

VARIANTS = ("native", "portable", "debug")
_REBUILD = "rebuild: `sb-edge engine build --force`"

BUILD_SPACE = 2 * 2**30
"""Bytes that source, objects and result need while building."""


class EngineInfo(BaseModel):
    """`engine.json`: build inputs of an engine.

    `patches`, `overlay` and `files` (of the prefix) map names to SHA-256; `cpu_features` are the building
    machine's, `system_info` is what ggml says it uses; `sanitizer_runtime` is what a `debug` engine needs in
    LD_PRELOAD to run in Python.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    variant: str
    package: str
    version: str
    sha256: str
    commit: str
    ggml_version: str
    licence: str
    patches: dict[str, str]
    overlay: dict[str, str]
    flags: list[str]
    compiler: str
    cpu: str
    cpu_features: list[str]
    system_info: str
    sanitizer_runtime: str | None
    built_at: str
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Engine:
    """A complete prefix: `bin/`, `lib/`, `python/` (gguf and llama_cpp of the same tree), engine.json."""

    prefix: Path
    info: EngineInfo

    @property
    def library_dir(self) -> Path:
        """The folder of libllama and the ggml libraries."""
        return self.prefix / "lib"

    @property
    def python_dir(self) -> Path:
        """The folder to put on sys.path."""
        return self.prefix / "python"

    def tool(self, name: str) -> Path:
        """The program `name`, for instance "llama-bench".

        Raises:
            EngineError: the engine has no such program.
        """
        path = self.prefix / "bin" / name
        if not path.is_file():
            raise EngineError("the engine has no such program", path=path, hint="`sb-edge run` lists them")
        self._require_built(f"bin/{name}", remembered_sha256)
        self.require_libraries()
        return path

    def require_libraries(self) -> None:
        """Refuse libraries that are not the ones that were built; unchanged files are not read again.

        Raises:
            EngineError: names the file.
        """
        for name in self.info.files:
            if name.startswith("lib/"):
                self._require_built(name, remembered_sha256)

    def verify(self) -> int:
        """Read every file and compare it with the manifest; return the number of files.

        Raises:
            EngineError: names the first file that is missing or differs, or there is no manifest of files.
        """
        if not self.info.files:
            raise EngineError("lists no files", path=self.prefix / MANIFEST, hint=_REBUILD)
        for name in self.info.files:
            self._require_built(name, sha256_of)
        return len(self.info.files)

    def _require_built(self, name: str, digest: Callable[[Path], str]) -> None:
        path, expected = self.prefix / name, self.info.files.get(name)
        if expected is None:
            return
        if not path.is_file():
            raise EngineError("is missing", path=path, hint=_REBUILD)
        found = digest(path)
        if found != expected:
            raise EngineError("is not the file that was built", path=path, found=found, hint=_REBUILD)


@dataclass(frozen=True)
class Recipe(ABC):
    """Build inputs; their hash is the cache key."""

    upstream: Upstream
    patch_set: PatchSet

    @property
    @abstractmethod
    def name(self) -> str:
        """The prefix's name in the cache."""

    @property
    @abstractmethod
    def flags(self) -> list[str]:
        """cmake's."""

    @property
    @abstractmethod
    def compiler(self) -> str:
        """Name and version of the compiler."""

    @abstractmethod
    def other_inputs(self) -> dict[str, Any]:
        """Inputs that only this kind of recipe has, as JSON values."""

    @property
    def key(self) -> str:
        """Hash of all inputs."""
        return content_key(
            {
                "recipe": RECIPE,
                "sha256": self.upstream.sha256,
                **self.patch_set.contents(),
                "series": [patch.name for patch in self.patch_set.patches],
                "flags": self.flags,
                "compiler": self.compiler,
                **self.other_inputs(),
            }
        )

    @property
    def identity_flags(self) -> tuple[str, str]:
        """cmake's for the build that tools report; its commit tells the patches too."""
        commit = self.upstream.commit[:7]
        if self.patch_set.patches or self.patch_set.overlay_files:
            commit += f"-sb.{self.patch_set.digest()[:8]}"
        return "-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={commit}"


@dataclass(frozen=True)
class BuildRecipe(Recipe):
    """Build inputs of an engine for this machine, or for any of its architecture."""

    toolchain: Toolchain
    variant: str

    @property
    def name(self) -> str:
        """The prefix's name in the cache."""
        return f"{self.variant}-{self.key}"

    @property
    def flags(self) -> list[str]:
        """cmake's."""
        from sb_edge.engine.build import COMMON_FLAGS, VARIANT_FLAGS

        return [*COMMON_FLAGS, *self.identity_flags, *VARIANT_FLAGS[self.variant]]

    @property
    def compiler(self) -> str:
        """Name and version of the compiler."""
        return self.toolchain.version

    def other_inputs(self) -> dict[str, Any]:
        """Tools and target; a `portable` engine does not depend on the machine's CPU."""
        from sb_edge.engine.build import tools_of

        target = "any" if self.variant == "portable" else self.toolchain.native_target
        return {"tools": tools_of(self.variant), "target": target}


def make_recipe(variant: str | None = None, patches: PatchChoice = "all") -> BuildRecipe:
    """The recipe of this installation of sb-edge on this machine.

    Args:
        variant: "native", "portable" or "debug"; None: SB_EDGE_ENGINE_VARIANT, else "native".
        patches: Patches to apply: "all", "operators" (without the generic improvements) or "none".

    Raises:
        EngineError: an unknown variant, damaged patches, or no compiler.
    """
    chosen = variant or os.environ.get("SB_EDGE_ENGINE_VARIANT") or "native"
    if chosen not in VARIANTS:
        hint = None if variant else "correct SB_EDGE_ENGINE_VARIANT"
        raise EngineError(
            "unknown engine variant", found=repr(chosen), expected=" or ".join(VARIANTS), hint=hint
        )
    folder = patches_folder()
    patch_set = load_patches(folder, patches)
    return BuildRecipe(read_upstream(folder / "UPSTREAM"), patch_set, find_toolchain(), chosen)


def open_engine(prefix: Path) -> Engine:
    """The engine in `prefix`.

    Raises:
        EngineError: no engine there, or a manifest that this version cannot read.
    """
    manifest = prefix / MANIFEST
    try:
        info = EngineInfo.model_validate_json(manifest.read_bytes())
    except OSError as error:
        raise EngineError("is not an engine", path=prefix, found=f"{MANIFEST}: {error.strerror}") from None
    except ValidationError as error:
        problem = first_problem(error)
        raise EngineError(problem.message, path=manifest, item=problem.key, hint=_REBUILD) from None
    return Engine(prefix.resolve(), info)


def find_engine(variant: str | None = None, patches: PatchChoice = "all") -> Engine:
    """The built engine for this source, these patches and flags, this compiler and this CPU.

    SB_EDGE_ENGINE names a prefix to use instead, whatever it was built from.

    Args:
        variant: "native", "portable" or "debug"; None: SB_EDGE_ENGINE_VARIANT, else "native".
        patches: Patches that were applied, see `make_recipe`.

    Raises:
        EngineError: it has not been built.
    """
    override = os.environ.get("SB_EDGE_ENGINE")
    if override:
        return open_engine(Path(override).expanduser())
    recipe = make_recipe(variant, patches)
    option = "" if recipe.variant == "native" else f" --{recipe.variant}"
    option += "" if patches == "all" else f" --patches {patches}"
    return find_built(
        recipe,
        EngineError(f"the {recipe.variant} engine is not built", hint=f"run `sb-edge engine build{option}`"),
    )


def find_built(recipe: Recipe, not_built: EngineError) -> Engine:
    """The engine that a recipe has built.

    Raises:
        EngineError: `not_built` if it is not in the cache; another error if its key is not the recipe's.
    """
    cache = BuildCache(cache_root())
    if not cache.is_complete(recipe.name):
        raise not_built
    engine = open_engine(cache.prefix(recipe.name))
    if engine.info.key != recipe.key:
        raise EngineError(
            "belongs to another build",
            path=engine.prefix / MANIFEST,
            item="key",
            found=engine.info.key,
            expected=recipe.key,
            hint=_REBUILD,
        )
    return engine


def build_engine(
    variant: str | None = None,
    jobs: int | None = None,
    *,
    patches: PatchChoice = "all",
    force: bool = False,
) -> Engine:
    """Build the engine, or find it in the cache.

    Args:
        variant: "native", "portable" or "debug"; None: SB_EDGE_ENGINE_VARIANT, else "native".
        jobs: Number of parallel compilers; None: by CPUs and free memory.
        patches: Patches to apply, see `make_recipe`.
        force: Build again even if it is in the cache.

    Raises:
        EngineError: fetching, patching, configuring, compiling or loading failed.
        OutputError: too little space.
    """
    recipe = make_recipe(variant, patches)
    return build_once(recipe, lambda site: _build(recipe, site, jobs), force=force)


@dataclass(frozen=True)
class BuildSite:
    """Places of a build in progress.

    Attributes:
        top: the unpacked source distribution.
        tree: the patched llama.cpp in it.
        work: folder for everything that is thrown away.
        stage: the prefix to fill.
        log: file for the output of tools.
    """

    top: Path
    tree: Path
    work: Path
    stage: Path
    log: Path


@dataclass(frozen=True)
class Built:
    """Fields of `EngineInfo` that are known after the build."""

    variant: str
    cpu: str
    cpu_features: list[str]
    system_info: str = ""
    sanitizer_runtime: str | None = None


def build_once(recipe: Recipe, build: Callable[[BuildSite], Built], *, force: bool) -> Engine:
    """Build an engine, or find it in the cache.

    Args:
        recipe: the recipe.
        build: compiles the patched tree and fills the prefix, but for the licences of the source.
        force: Build again even if it is in the cache.

    Raises:
        EngineError: fetching, patching or building failed.
        OutputError: too little space.
    """
    cache = BuildCache(cache_root())
    log = cache.log(recipe.name)

    def make(work: Path, stage: Path) -> None:
        from sb_edge.engine.build import install_licences

        require_free_space(cache.root, BUILD_SPACE, "building the engine")
        log.unlink(missing_ok=True)
        sdist = fetch_sdist(recipe.upstream, cache.root / "source")
        top = unpack(sdist, recipe.upstream, work / "source")
        tree = top / recipe.upstream.tree
        apply_patches(recipe.patch_set, tree)
        built = build(BuildSite(top, tree, work, stage, log))
        install_licences(top, tree, stage)
        info = EngineInfo(
            key=recipe.key,
            **(recipe.upstream.model_dump(exclude={"filename", "tree"}) | recipe.patch_set.contents()),
            flags=recipe.flags,
            compiler=recipe.compiler,
            **asdict(built),
            built_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files=hashes_of(stage),
        )
        (stage / MANIFEST).write_text(json.dumps(info.model_dump(), indent=2) + "\n", encoding="utf-8")

    return open_engine(cache.build_once(recipe.name, make, force=force))


def _build(recipe: BuildRecipe, site: BuildSite, jobs: int | None) -> Built:
    from sb_edge.engine import build as steps

    build = site.work / "build"
    steps.configure(site.tree, build, recipe.flags, recipe.toolchain, site.log)
    tools = steps.tools_of(recipe.variant)
    steps.compile_targets(site.tree, build, tools, recipe.toolchain, site.log, jobs=jobs)
    steps.install_programs(build, site.stage, tools)
    steps.install_python(site.top, site.tree, site.stage)
    runtime = _sanitizer_runtime(recipe)
    cpu = cpuinfo.get_cpu_info()
    return Built(
        variant=recipe.variant,
        cpu=cpu.get("brand_raw", "unknown"),
        cpu_features=cpu.get("flags", []),
        system_info=probe(site.stage / "lib", runtime),
        sanitizer_runtime=runtime,
    )


def hashes_of(prefix: Path) -> dict[str, str]:
    """SHA-256 of the programs, libraries and packages of a prefix, by relative name; links have none."""
    files = sorted(
        file
        for folder in ("bin", "lib", "python")
        for file in (prefix / folder).rglob("*")
        if file.is_file() and not file.is_symlink() and "__pycache__" not in file.parts
    )
    return {str(file.relative_to(prefix)): sha256_of(file) for file in files}


def _sanitizer_runtime(recipe: BuildRecipe) -> str | None:
    if recipe.variant != "debug":
        return None
    command = [*recipe.toolchain.cxx.split(), "-print-file-name=libasan.so"]
    return str(Path(subprocess.check_output(command, text=True).strip()).resolve())


def probe(library_dir: Path, sanitizer_runtime: str | None = None) -> str:
    """ggml's list of CPU features, from a process that loads the libraries in `library_dir`.

    Raises:
        EngineError: they do not load.
    """
    environment = dict(os.environ)
    if sanitizer_runtime:
        environment.update(LD_PRELOAD=sanitizer_runtime, ASAN_OPTIONS="detect_leaks=0")
    command = [sys.executable, "-m", "sb_edge.engine.probe", str(library_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EngineError("the built library does not load", path=library_dir, found=last)
    return done.stdout


_active: Engine | None = None


def activate(engine: Engine | None = None) -> Engine:
    """Make `import llama_cpp` and `import gguf` take this engine's; call it before them.

    Puts the engine's packages first on sys.path, points the bindings at its library and, for a `portable`
    engine, loads the backends that suit the CPU. Calling it again is free. An imported gguf stays.

    Args:
        engine: None: `find_engine()`, or the one already active.

    Raises:
        EngineError: not built; another engine or other bindings are already in use in this process; or a
            `debug` engine in a Python that was started without the sanitizer.
    """
    global _active
    if _active is not None and (engine is None or engine.prefix == _active.prefix):
        return _active
    if _active is not None and engine is not None:
        raise EngineError(
            "another engine is in use in this process", path=engine.prefix, found=_active.prefix
        )
    engine = engine or find_engine()
    _refuse_other_bindings(engine)
    _require_sanitizer(engine)
    engine.require_libraries()
    sys.path.insert(0, str(engine.python_dir))
    os.environ["LLAMA_CPP_LIB_PATH"] = str(engine.library_dir)
    if engine.info.variant == "portable":
        load_backends(engine.library_dir)
    _active = engine
    return engine


def _refuse_other_bindings(engine: Engine) -> None:
    loaded = getattr(sys.modules.get("llama_cpp"), "__file__", None)
    if loaded and not Path(loaded).resolve().is_relative_to(engine.prefix):
        raise EngineError(
            "other bindings are already imported",
            path=loaded,
            expected=engine.python_dir / "llama_cpp",
            hint="call sb_edge.engine.activate() before importing llama_cpp",
        )


def _require_sanitizer(engine: Engine) -> None:
    runtime = engine.info.sanitizer_runtime
    if runtime and "asan" not in Path("/proc/self/maps").read_text():
        raise EngineError(
            "a debug engine needs the address sanitizer loaded first",
            path=engine.prefix,
            hint=f"start with LD_PRELOAD={runtime} ASAN_OPTIONS=detect_leaks=0",
        )
