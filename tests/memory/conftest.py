from __future__ import annotations

from pathlib import Path

import pytest
from shapes import WRITERS, write_hollow

from sb_edge.gguf.reader import GgufHeader, read_header


@pytest.fixture(scope="session")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufHeader]:
    """Headers of real shapes, by architecture; their files have holes for data."""
    folder: Path = tmp_path_factory.mktemp("hollow")
    return {arch: read_header(write_hollow(arch, folder / f"{arch}.gguf")) for arch in WRITERS}
