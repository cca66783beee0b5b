"""One complete build at a time, or none, also when processes race or are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sb_edge.engine.cache import MANIFEST, BuildCache, content_key
from sb_edge.util.errors import EngineError
from sb_edge.util.user_cache import cache_root

PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(small C)
add_custom_command(OUTPUT slow.c
  COMMAND ${CMAKE_COMMAND} -E sleep ${SECONDS}
  COMMAND ${CMAKE_COMMAND} -E touch ${STARTED}
  COMMAND ${CMAKE_COMMAND} -E sleep ${SECONDS}
  COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_SOURCE_DIR}/main.c slow.c)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(small slow.c)
"""

BUILDER = """
import os, sys
from pathlib import Path
from sb_edge.engine.build import compile_targets, configure, install_programs
from sb_edge.engine.cache import MANIFEST, BuildCache
from sb_edge.engine.toolchain import find_toolchain

root, project, started, seconds = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
cache = BuildCache(root)

def build(work, stage):
    with (root / "builds").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    flags = [f"-DSECONDS={seconds}", f"-DSTARTED={started}"]
    configure(project, work / "build", flags, find_toolchain(), cache.log("small"))
    compile_targets(project, work / "build", ["small"], find_toolchain(), cache.log("small"), jobs=1)
    install_programs(work / "build", stage, ["small"])
    (stage / MANIFEST).write_text("{}")

print(cache.build_once("small", build))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(PROJECT)
    (project / "main.c").write_text("int main(void) { return 7; }\n")
    return project


def start(root: Path, project: Path, seconds: float) -> subprocess.Popen[str]:
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILDER, str(root), str(project), str(root / "started"), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def builds(root: Path) -> int:
    return len((root / "builds").read_text().split())


def make_prefix(work: Path, stage: Path) -> None:
    (work / "scratch").write_text("x")
    (stage / MANIFEST).write_text("{}")


def test_two_processes_make_one_build(tmp_path: Path, project: Path) -> None:
    root = tmp_path / "cache"
    first, second = start(root, project, 1), start(root, project, 1)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == f"{root}/engines/small\n"
    assert builds(root) == 1
    assert sum("waiting for it" in errors for _, errors in outputs) == 1
    assert subprocess.run([root / "engines" / "small" / "bin" / "small"], check=False).returncode == 7


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_build_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, project: Path, how: signal.Signals
) -> None:
    root = tmp_path / "cache"
    process = start(root, project, 1)
    wait_for(root / "started")
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list((root / "engines").iterdir()) == []

    again = start(root, project, 0)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert builds(root) == 2
    assert (root / "engines" / "small" / MANIFEST).is_file()
    left = [work for work in (root / "work").iterdir() if any(work.iterdir())]
    assert left == []


def test_a_finished_build_is_found_again(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    prefix = cache.build_once("one", make_prefix)

    def refuse(work: Path, stage: Path) -> None:
        raise EngineError("built twice")

    assert cache.build_once("one", refuse) == prefix
    assert list((tmp_path / "work").iterdir()) == []


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)

    def fail(work: Path, stage: Path) -> None:
        make_prefix(work, stage)
        raise EngineError("the build failed")

    with pytest.raises(EngineError, match="the build failed"):
        cache.build_once("one", fail)
    assert not cache.is_complete("one")
    assert list((tmp_path / "engines").iterdir()) == list((tmp_path / "work").iterdir()) == []


def test_a_build_without_manifest_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no manifest"):
        BuildCache(tmp_path).build_once("one", lambda work, stage: None)


def test_force_replaces_only_on_success(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    prefix = cache.build_once("one", make_prefix)
    (prefix / "old").touch()

    def fail(work: Path, stage: Path) -> None:
        raise EngineError("the build failed")

    with pytest.raises(EngineError):
        cache.build_once("one", fail, force=True)
    assert (prefix / "old").exists()
    cache.build_once("one", make_prefix, force=True)
    assert not (prefix / "old").exists()
    assert cache.is_complete("one")


def test_work_of_other_builds_is_removed_unless_in_progress(tmp_path: Path, project: Path) -> None:
    cache = BuildCache(tmp_path / "cache")
    running = start(cache.root, project, 1)
    wait_for(cache.root / "started")
    abandoned = cache.root / "work" / "native-0123.abc"
    abandoned.mkdir()
    cache.build_once("other", make_prefix)
    assert not abandoned.exists()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("SB_EDGE_CACHE")
    assert cache_root().name == "sb-edge"


def test_the_key_depends_on_content_not_on_order() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1, "b": [1, 2]}) != content_key({"a": 1, "b": [2, 1]})
