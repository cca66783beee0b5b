"""The build steps, on a small project of the same shape: programs that link shared libraries of the tree."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from sb_edge.engine.build import (
    COMMON_FLAGS,
    build_environment,
    compile_targets,
    configure,
    default_jobs,
    install_programs,
)
from sb_edge.engine.toolchain import find_toolchain
from sb_edge.util.errors import EngineError

PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(small C)
option(GGML_BACKEND_DL "" OFF)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(seven SHARED seven.c)
set_target_properties(seven PROPERTIES VERSION 1.2.3 SOVERSION 1)
add_library(ggml-cpu-any MODULE seven.c)
add_executable(small main.c)
add_dependencies(small ggml-cpu-any)
target_link_libraries(small PRIVATE seven)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(PROJECT)
    (project / "seven.c").write_text("int seven(void); int seven(void) { return 7; }\n")
    (project / "main.c").write_text("int seven(void); int main(void) { return seven(); }\n")
    return project


def build(project: Path, *flags: str) -> Path:
    folder, log = project.parent / "build", project.parent / "log"
    configure(project, folder, [*COMMON_FLAGS, *flags], find_toolchain(), log)
    compile_targets(project, folder, ["small"], find_toolchain(), log, jobs=1)
    return folder


def install(project: Path, *flags: str) -> Path:
    stage = project.parent / "stage"
    stage.mkdir()
    install_programs(build(project, *flags), stage, ["small"])
    return stage


def test_a_prefix_can_be_renamed_and_the_build_removed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = install(project)
    (project.parent / "build").rename(project.parent / "gone")
    prefix = stage.rename(project.parent / "elsewhere")
    assert sorted(file.name for file in (prefix / "lib").iterdir() if "seven" in file.name) == [
        "libseven.so",
        "libseven.so.1",
        "libseven.so.1.2.3",
    ]
    assert (prefix / "lib" / "libseven.so.1").is_symlink()
    assert subprocess.run([prefix / "bin" / "small"], check=False).returncode == 7


def test_a_library_of_the_users_is_not_mixed_in(project: Path, tmp_path: Path) -> None:
    stage = install(project)
    other = tmp_path / "other"
    other.mkdir()
    (other / "libseven.so.1").write_bytes(b"not a library")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(other)}
    assert subprocess.run([stage / "bin" / "small"], env=environment, check=False).returncode == 7


def test_run_time_backends_are_linked_beside_the_programs(project: Path) -> None:
    stage = install(project, "-DGGML_BACKEND_DL=ON")
    link = stage / "bin" / "libggml-cpu-any.so"
    assert link.readlink() == Path("../lib/libggml-cpu-any.so")
    assert link.is_file()


def test_without_run_time_backends_there_are_no_links(project: Path) -> None:
    assert [file.name for file in (install(project) / "bin").iterdir()] == ["small"]


def test_a_compile_error_is_shown_and_the_log_named(project: Path) -> None:
    (project / "seven.c").write_text("int seven(void) { return seventh; }\n")
    with pytest.raises(EngineError, match="the build failed") as caught:
        build(project)
    log = project.parent / "log"
    assert str(log) in str(caught.value)
    assert "seventh" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "seventh" in log.read_text()


def test_a_configure_error_is_shown_and_the_log_named(project: Path) -> None:
    (project / "CMakeLists.txt").write_text("project(")
    with pytest.raises(EngineError, match=re.escape(str(project.parent / "log"))):
        build(project)


def test_a_program_that_was_not_built_is_named(project: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    with pytest.raises(EngineError, match="llama-absent: was not built"):
        install_programs(build(project), stage, ["llama-absent"])


def test_the_users_settings_do_not_reach_the_build(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_GENERATOR", "GIT_DIR", "MAKEFLAGS", "NINJA_STATUS"):
        monkeypatch.setenv(name, "of the user")
    environment = build_environment(project, find_toolchain())
    assert "of the user" not in environment.values()
    assert environment["PATH"] == os.environ["PATH"]
    install(project)


def test_jobs_are_at_least_one() -> None:
    assert 1 <= default_jobs() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("variable", "value"), [("CXX", "no-such-compiler"), ("CC", "false")])
def test_a_missing_or_broken_compiler_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(EngineError, match=value) as caught:
        find_toolchain()
    assert "apt install g++" in str(caught.value)
