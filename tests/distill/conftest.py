"""A base and a text that tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tiny_bases import write_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that no test changes."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four kilobytes of text."""
    rng = np.random.default_rng(1)
    words = ["river", "stone", "seven", "lamps", "under", "slow", "green", "a", "the", "moves", "over"]
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(" ".join(rng.choice(words, 800)) + ".\n")
    return path
