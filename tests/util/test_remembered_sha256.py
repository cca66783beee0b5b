"""Hashes of large files are remembered, but never for another content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sb_edge.util import user_cache
from sb_edge.util.hashes import sha256_of
from sb_edge.util.user_cache import cache_root, remembered, remembered_sha256


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    read: list[Path] = []
    monkeypatch.setattr(user_cache, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    assert remembered_sha256(file) == remembered_sha256(file) == sha256_of(file)
    assert read == [file]
    file.write_bytes(b"changed")
    assert remembered_sha256(file) == sha256_of(file)
    for memory in (tmp_path / "cache" / "facts").iterdir():
        memory.write_text("forged")
    assert remembered_sha256(file) == sha256_of(file)
    assert len(read) == 3


def test_the_least_recently_used_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(user_cache, "_MOST_FACTS", 3)
    found: list[str] = []
    for name in ("a", "b", "a", "c", "a", "d", "a", "b"):
        for file in (tmp_path / "cache").glob("facts/*"):
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**10))
        remembered(name, [], lambda name=name: found.append(name) or name)
    assert found == ["a", "b", "c", "d", "b"]
    assert len(list((tmp_path / "cache" / "facts").iterdir())) == 3


def test_the_facts_of_tests_are_not_the_users() -> None:
    assert (cache_root() / "engines").is_symlink() and not (cache_root() / "facts").is_symlink()
