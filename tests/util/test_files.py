"""Output files: complete or not at all, and never in place of a special file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sb_edge.util.errors import OutputError
from sb_edge.util.files import (
    atomic_directory,
    atomic_files,
    atomic_output,
    remove_partials,
    require_output,
    sync_tree,
)
from sb_edge.util.hashes import sha256_of, sha256_of_bytes

Atomic = Callable[[Path], AbstractContextManager[Path]]


@pytest.mark.parametrize("atomic", [atomic_output, atomic_files, atomic_directory])
def test_nothing_is_left_of_an_interrupted_write(atomic: Atomic, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if atomic is not atomic_directory:
        target.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), atomic(target) as partial:
        (partial / "part" if partial.is_dir() else partial).write_text("half")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if atomic is atomic_directory else ["out"])
    if target.exists():
        assert target.read_text() == "earlier"


def test_a_file_a_folder_and_parts_appear_when_complete(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "file") as partial:
        partial.write_text("whole")
        assert list(tmp_path.iterdir()) == [partial]
    with atomic_directory(tmp_path / "folder") as partial:
        (partial / "inside").write_text("whole")
        assert not (tmp_path / "folder").exists()
    with atomic_files(tmp_path / "parts") as partial:
        for name in ("parts-1", "parts-2"):
            (partial / name).write_text("whole")
    names = {"file", "folder", "parts-1", "parts-2"}
    assert {entry.name for entry in tmp_path.iterdir()} == names
    assert (tmp_path / "folder" / "inside").read_text() == "whole"


@pytest.mark.parametrize("atomic", [atomic_output, atomic_files])
def test_a_device_and_a_fifo_are_not_replaced(atomic: Atomic, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "null"):
        with pytest.raises(OutputError, match="is not a regular file"), atomic(tmp_path / name):
            pass
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "null").is_symlink()


def test_a_part_does_not_replace_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "parts-2")
    with (
        pytest.raises(OutputError, match=r"parts-2: is not a regular file"),
        atomic_files(tmp_path / "p") as p,
    ):
        for name in ("parts-1", "parts-2"):
            (p / name).write_text("whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["parts-2"]


def test_an_input_is_not_replaced_under_another_name(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("input")
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link"):
        with pytest.raises(OutputError, match="is the input"):
            require_output(target, [source])
    require_output(source, [tmp_path])


def test_a_link_is_replaced_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    with atomic_output(tmp_path / "link") as partial:
        partial.write_text("new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_text() == "old"


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-1").write_text("half")
    (tmp_path / ".folder.partial-2").mkdir()
    (tmp_path / ".folder.partial-2" / "inside").write_text("half")
    (tmp_path / "out").write_text("whole")
    remove_partials(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_every_file_and_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("whole")
    (inner / "nowhere").symlink_to("absent")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    sync_tree(tmp_path / "folder")
    assert set(synced) == {path.stat().st_ino for path in (tmp_path / "folder", inner, inner / "file")}


def test_hashes_join_their_parts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"a")
    second.write_bytes(b"bc" * 2**20)
    # sha256sum of "abc", by FIPS 180-4's example
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_bytes(b"abc") == sha256_of_bytes(b"a", b"", b"bc") == expected
    assert sha256_of(first, second) == sha256_of_bytes(b"a", b"bc" * 2**20)
