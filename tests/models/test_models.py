from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sb_edge.arch.layer_map import recurrent_layers
from sb_edge.convert.adapter_file import read_adapter_file
from sb_edge.gguf.reader import read_header
from sb_edge.models.default_model import BASE_WHEEL, DEFAULT_TRAINED, default_base
from sb_edge.models.registry import resolve_gguf
from sb_edge.util.errors import EngineError, GgufError


def test_a_path_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert resolve_gguf(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    with pytest.raises(GgufError, match="default, default-base"):
        resolve_gguf(tmp_path / "b.gguf")


@pytest.mark.engine
def test_the_default_model_has_the_layers_that_it_claims() -> None:
    header = read_header(resolve_gguf("default"))
    assert header.arch == "spikingbrain"
    layers = read_adapter_file(DEFAULT_TRAINED).gla_layers
    assert [n for n, gla in enumerate(recurrent_layers(header)) if gla] == list(layers)
    assert header.metadata["general.license"] == "apache-2.0"
    assert resolve_gguf("default").stat().st_mtime == resolve_gguf("default").stat().st_mtime


def test_the_default_model_s_record_is_that_of_its_training() -> None:
    trained, folder = read_adapter_file(DEFAULT_TRAINED), DEFAULT_TRAINED.parent
    assert DEFAULT_TRAINED.stat().st_size <= 24 * 2**20
    layers, whole = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("layers", "whole"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for record in (layers, whole):
        assert record["settings"]["base"] == trained.base
        assert tuple(record["settings"]["gla_layers"]) == trained.gla_layers
        assert record["settings"]["window"] == trained.window
        assert record["settings"]["text"] == manifest["tokens_sha256"]
        assert record["stages"][-1]["curve"][-1]["losses"]
    assert all(entry["licence"] for entry in manifest["documents"])


@pytest.mark.engine
def test_a_changed_base_is_fetched_again_and_a_changed_wheel_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = default_base()
    monkeypatch.setenv("SB_EDGE_CACHE", str(tmp_path))
    (tmp_path / "source").mkdir()
    wheel = tmp_path / "source" / BASE_WHEEL.filename
    shutil.copy(good.parents[1] / "source" / BASE_WHEEL.filename, wheel)
    first = default_base()
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert default_base().read_bytes() == good.read_bytes()

    first.unlink()
    wheel.write_bytes(b"something else")
    with pytest.raises(EngineError, match="not the pinned file"):
        default_base()
    assert not first.exists()
