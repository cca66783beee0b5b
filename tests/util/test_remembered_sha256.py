"""Hashes of large files are remembered, but never for another content."""

from __future__ import annotations

from pathlib import Path

import pytest

from sb_edge.util import user_cache
from sb_edge.util.hashes import sha256_of
from sb_edge.util.user_cache import remembered_sha256


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
    (memory,) = [
        path for path in (tmp_path / "cache" / "hashes").iterdir() if path.read_text() == sha256_of(file)
    ]
    memory.write_text("forged")
    assert remembered_sha256(file) == sha256_of(file)
    assert len(read) == 3
