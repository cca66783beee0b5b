"""The pinned source distribution, and the refusal of everything else."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from sb_edge.engine.source import (
    Upstream,
    fetch_sdist,
    patches_folder,
    read_upstream,
    unpack,
)
from sb_edge.util.errors import EngineError
from sb_edge.util.hashes import sha256_of


@pytest.fixture
def upstream() -> Upstream:
    return read_upstream(patches_folder() / "UPSTREAM")


def make_archive(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_the_pinned_version_is_the_required_one(upstream: Upstream) -> None:
    assert (upstream.package, upstream.version) == ("llama-cpp-python", "0.3.36")
    assert upstream.sha256 == "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


@pytest.mark.parametrize(
    ("line", "replacement", "named"),
    [
        (r"^sha256 = .*$", "", "sha256"),
        (r"^sha256 = .*$", 'sha256 = "12"', "sha256"),
        (r"^filename = .*$", 'filename = "../x.tar.gz"', "filename"),
        (r"^version = .*$", "version = ", "TOML"),
        (r"^version", "flavour = 1\nversion", "flavour"),
    ],
)
def test_a_damaged_upstream_file_is_refused(tmp_path: Path, line: str, replacement: str, named: str) -> None:
    good = (patches_folder() / "UPSTREAM").read_text()
    bad = tmp_path / "UPSTREAM"
    bad.write_text(re.sub(line, replacement, good, flags=re.MULTILINE))
    with pytest.raises(EngineError, match=named) as caught:
        read_upstream(bad)
    assert str(bad) in str(caught.value)


def test_other_content_in_the_cache_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    path = tmp_path / upstream.filename
    path.write_bytes(b"something else")
    with pytest.raises(EngineError, match="not the pinned file") as caught:
        fetch_sdist(upstream, tmp_path)
    for part in (str(path), upstream.sha256, sha256_of(path), "delete"):
        assert part in str(caught.value)
    assert path.read_bytes() == b"something else"


def test_pip_refuses_other_content_before_running_its_code(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "was run"
    index = tmp_path / "index"
    index.mkdir()
    setup = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nimport setuptools; setuptools.setup()"
    members = {f"{upstream.folder}/setup.py": setup, f"{upstream.folder}/PKG-INFO": "Name: llama-cpp-python"}
    make_archive(index / upstream.filename, members)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    cache = tmp_path / "cache"
    with pytest.raises(EngineError, match="serves another file under this name") as caught:
        fetch_sdist(upstream, cache)
    assert sha256_of(index / upstream.filename) in str(caught.value)
    assert not marker.exists()
    assert list(cache.iterdir()) == []


def test_without_a_network_the_error_says_where_to_put_the_file(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EngineError, match="could not be downloaded") as caught:
        fetch_sdist(upstream, tmp_path / "cache")
    assert str(tmp_path / "cache" / upstream.filename) in str(caught.value)


def test_a_verified_file_in_the_cache_is_used_without_pip(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_archive(tmp_path / upstream.filename, {"a": "b"})
    pinned = upstream.model_copy(update={"sha256": sha256_of(path)})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch_sdist(pinned, tmp_path) == path
    assert fetch_sdist(pinned, tmp_path).read_bytes() == path.read_bytes()


def test_unpacking_leaves_the_distributions_git_folder_out(tmp_path: Path, upstream: Upstream) -> None:
    top = upstream.folder
    members = {
        f"{top}/vendor/llama.cpp/CMakeLists.txt": "project(x)",
        f"{top}/.git/config": "[core]",
        f"{top}/vendor/llama.cpp/.git": "gitdir: ../../.git",
    }
    archive = make_archive(tmp_path / "a.tar.gz", members)
    unpacked = unpack(archive, upstream, tmp_path / "out")
    files = sorted(str(file.relative_to(unpacked)) for file in unpacked.rglob("*") if file.is_file())
    assert files == ["vendor/llama.cpp/CMakeLists.txt"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/../../outside"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, upstream: Upstream, name: str) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {name: "x"})
    with pytest.raises(EngineError):
        unpack(archive, upstream, tmp_path / "out" / "deep")
    assert not list(tmp_path.rglob("outside"))


def test_a_truncated_archive_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {f"{n}": str(n) * 999 for n in range(500)})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(EngineError, match=re.escape(str(archive))):
        unpack(archive, upstream, tmp_path / "out")


def test_an_archive_without_the_tree_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {f"{upstream.folder}/README": "x"})
    with pytest.raises(EngineError, match=r"holds no llama\.cpp"):
        unpack(archive, upstream, tmp_path / "out")
