"""Isolation: no test reads or writes the user's own folders; the built engine and models stay shared."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Fixed before HOME changes: engine and built-in models are expensive and read-only here.
from sb_edge.engine import cache_root

DATA = Path(__file__).parent / "data"

os.environ["SB_EDGE_CACHE"] = str(cache_root())
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell starts background jobs with SIGINT ignored, and children inherit that; some tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("SB_EDGE_DEBUG", raising=False)


@pytest.fixture(scope="session")
def data() -> Path:
    """The golden checkpoints."""
    return DATA


@pytest.fixture(scope="session")
def golden_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The golden gla_swa checkpoint as a float32 GGUF."""
    from sb_edge.convert.convert import convert_checkpoint

    path = tmp_path_factory.mktemp("golden") / "gla_swa-f32.gguf"
    convert_checkpoint(DATA / "gla_swa", path, outtype="f32")
    return path
