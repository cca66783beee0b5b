"""Identity of an engine, finding it, and using it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sb_edge.engine import Engine, find_engine, open_engine
from sb_edge.engine.build import TOOLS, tools_of
from sb_edge.engine.cache import MANIFEST
from sb_edge.engine.patching import load_patches
from sb_edge.engine.prefix import BuildRecipe, EngineInfo, make_recipe
from sb_edge.util.errors import EngineError

INFO = EngineInfo(
    key="0123456789abcdef",
    variant="native",
    package="llama-cpp-python",
    version="0.3.36",
    sha256="0" * 64,
    commit="1" * 40,
    ggml_version="0.25.3",
    licence="MIT",
    patches={"0001-a.patch": "2" * 64},
    overlay={"src/a.cpp": "3" * 64},
    flags=["-DGGML_NATIVE=ON"],
    compiler="c++ 12",
    cpu="a CPU",
    cpu_features=["avx2"],
    system_info="CPU : AVX2 = 1",
    sanitizer_runtime=None,
    built_at="2026-01-01T00:00:00+00:00",
)


def sb_edge(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sb_edge", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / MANIFEST).write_text(json.dumps(INFO.model_dump()))
    return prefix


@pytest.fixture
def recipe(tmp_path: Path) -> BuildRecipe:
    folder = tmp_path / "patches"
    (folder / "overlay").mkdir(parents=True)
    (folder / "series").write_text("a.patch\n")
    (folder / "a.patch").write_text("a")
    (folder / "overlay" / "a.cpp").write_text("a")
    return replace(make_recipe("native"), patch_set=load_patches(folder))


def test_the_key_changes_with_all_that_decides_the_result(recipe: BuildRecipe) -> None:
    folder = recipe.patch_set.overlay.parent
    keys = [recipe.key]
    assert recipe.key == keys[0]
    (folder / "a.patch").write_text("b")
    keys.append(replace(recipe, patch_set=load_patches(folder)).key)
    (folder / "overlay" / "a.cpp").write_text("b")
    keys.append(replace(recipe, patch_set=load_patches(folder)).key)
    keys.append(replace(recipe, variant="debug").key)
    keys.append(replace(recipe, variant="portable").key)
    keys.append(replace(recipe, toolchain=replace(recipe.toolchain, version="c++ 99")).key)
    keys.append(replace(recipe, toolchain=replace(recipe.toolchain, native_target="another CPU")).key)
    keys.append(replace(recipe, upstream=recipe.upstream.model_copy(update={"sha256": "0" * 64})).key)
    assert len(set(keys)) == len(keys)


def test_a_portable_engine_does_not_depend_on_the_cpu(recipe: BuildRecipe) -> None:
    here = replace(recipe, variant="portable")
    assert replace(here, toolchain=replace(here.toolchain, native_target="another CPU")).key == here.key


def test_the_commit_that_tools_report_tells_the_patches(recipe: BuildRecipe) -> None:
    reported = f"-DLLAMA_BUILD_COMMIT={recipe.upstream.commit[:7]}-sb.{recipe.patch_set.digest()[:8]}"
    assert reported in recipe.flags


def test_an_engine_that_is_not_built_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SB_EDGE_ENGINE", raising=False)
    monkeypatch.delenv("SB_EDGE_ENGINE_VARIANT", raising=False)
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="native engine is not built; run `sb-edge engine build`"):
        find_engine()
    monkeypatch.setenv("SB_EDGE_ENGINE_VARIANT", "portable")
    with pytest.raises(
        EngineError, match="portable engine is not built; run `sb-edge engine build --portable`"
    ):
        find_engine()


def test_an_unknown_variant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SB_EDGE_ENGINE", raising=False)
    monkeypatch.setenv("SB_EDGE_ENGINE_VARIANT", "fast")
    with pytest.raises(EngineError, match="'fast', expected native or portable or debug"):
        find_engine()


def test_the_environment_can_name_a_prefix(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_EDGE_ENGINE", str(prefix))
    assert find_engine() == Engine(prefix, INFO)


def test_a_prefix_without_an_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_EDGE_ENGINE", str(tmp_path))
    with pytest.raises(EngineError, match="is not an engine") as caught:
        find_engine()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}'])
def test_a_damaged_manifest_is_refused(prefix: Path, text: str) -> None:
    (prefix / MANIFEST).write_text(text)
    with pytest.raises(EngineError, match=MANIFEST) as caught:
        open_engine(prefix)
    assert "sb-edge engine build --force" in str(caught.value)


def test_a_tool_that_is_not_there_is_named(prefix: Path) -> None:
    with pytest.raises(EngineError, match="llama-absent"):
        open_engine(prefix).tool("llama-absent")


def test_other_bindings_are_refused(prefix: Path) -> None:
    other = prefix.parent / "llama_cpp.py"
    other.touch()
    code = "import llama_cpp; from sb_edge.engine import activate; activate()"
    done = python(code, SB_EDGE_ENGINE=str(prefix), PYTHONPATH=str(other.parent))
    assert f"{other}: other bindings are already imported" in done.stderr


def test_a_debug_engine_says_how_to_start_python(prefix: Path) -> None:
    info = INFO.model_copy(update={"variant": "debug", "sanitizer_runtime": "/lib/libasan.so"})
    (prefix / MANIFEST).write_text(json.dumps(info.model_dump()))
    done = python("from sb_edge.engine import activate; activate()", SB_EDGE_ENGINE=str(prefix))
    assert "LD_PRELOAD=/lib/libasan.so" in done.stderr


def test_info_shows_all_fields(prefix: Path) -> None:
    done = sb_edge("engine", "info", SB_EDGE_ENGINE=str(prefix), COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for part in (
        "0.3.36",
        "0" * 64,
        "0001-a.patch",
        "src/a.cpp",
        "GGML_NATIVE=ON",
        "c++ 12",
        "avx2",
        "AVX2 = 1",
    ):
        assert part in done.stdout


def test_info_as_json_is_all_there_is_on_standard_output(prefix: Path) -> None:
    done = sb_edge("engine", "info", "--json", "-", SB_EDGE_ENGINE=str(prefix))
    assert json.loads(done.stdout) == {"prefix": str(prefix), **INFO.model_dump(exclude={"files"})}


def test_path_prints_the_prefix(prefix: Path) -> None:
    assert sb_edge("engine", "path", SB_EDGE_ENGINE=str(prefix)).stdout == f"{prefix}\n"


def test_contradicting_variants_are_bad_usage() -> None:
    assert sb_edge("engine", "path", "--portable", "--debug").returncode == 2


def test_no_engine_is_one_line_and_exit_1(tmp_path: Path) -> None:
    done = sb_edge("engine", "info", SB_EDGE_ENGINE=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.engine
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_is_there_and_finds_its_libraries(tool: str) -> None:
    engine = find_engine()
    if tool not in tools_of(engine.info.variant):
        pytest.skip(f"a {engine.info.variant} engine has no {tool}")
    path = engine.tool(tool)
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert "not found" not in linked
    ours = [line for line in linked.splitlines() if "llama" in line or "ggml" in line]
    assert ours
    assert all(str(engine.prefix) in os.path.realpath(line.split()[2]) for line in ours)


@pytest.mark.engine
@pytest.mark.parametrize("tool", ["llama-server", "llama-perplexity"])
def test_tools_report_the_patched_commit(tool: str) -> None:
    engine = find_engine()
    done = subprocess.run([engine.tool(tool), "--version"], capture_output=True, text=True, check=True)
    assert engine.info.commit[:7] in done.stdout + done.stderr


@pytest.mark.engine
def test_the_bindings_and_gguf_are_those_of_the_engine() -> None:
    code = (
        "from sb_edge.engine import activate; engine = activate(); assert activate() is engine\n"
        "import gguf, llama_cpp; llama_cpp.llama_backend_init()\n"
        "system_info = llama_cpp.llama_print_system_info().decode().strip()\n"
        "print(gguf.__file__, llama_cpp.__file__, system_info, sep='\\n')"
    )
    engine = find_engine()
    lines = python(code).stdout.splitlines()
    assert lines[:2] == [str(engine.python_dir / name / "__init__.py") for name in ("gguf", "llama_cpp")]
    assert lines[2] == engine.info.system_info


@pytest.mark.engine
def test_a_finished_engine_is_not_built_again() -> None:
    if "SB_EDGE_ENGINE" in os.environ:
        pytest.skip("SB_EDGE_ENGINE names an engine that is not in the cache")
    done = sb_edge("engine", "build")
    assert (done.stdout, done.returncode) == (f"{find_engine().prefix}\n", 0)
