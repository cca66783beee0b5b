"""A saved state is refused by everything that would continue it as another text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_edit import rewrite
from support import exit_code

from sb_edge.gguf.reader import read_header
from sb_edge.gguf.values import tensor_bytes
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import StateError

pytestmark = pytest.mark.engine

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
Make = Callable[[Path, Path], None]


def key(name: str, value: object) -> Make:
    def make(source: Path, target: Path) -> None:
        rewrite(source, target, {name: value})

    return make


def swapped(name: str) -> Make:
    """Two entries of a list of strings change places."""

    def make(source: Path, target: Path) -> None:
        values = list(read_header(source).metadata[name])
        values[40], values[41] = values[41], values[40]
        rewrite(source, target, {name: values})

    return make


def weight(name: str) -> Make:
    """One value in the middle of a tensor, with the time of the file put back."""

    def make(source: Path, target: Path) -> None:
        shutil.copy2(source, target)
        tensor = next(each for each in read_header(target).tensors if each.name == name)
        data = tensor_bytes(tensor, writable=True).reshape(-1).view(np.float32)
        data[data.size // 2] += 1
        del data
        shutil.copystat(source, target)

    return make


def quantized(*options: str) -> Make:
    def make(source: Path, target: Path) -> None:
        assert exit_code("quantize", source, target, *options) == 0

    return make


def spiking(k: str) -> Make:
    def make(source: Path, target: Path) -> None:
        assert exit_code("spikes", "set", source, target, k) == 0

    return make


OTHER_FILES: dict[str, Make] = {
    "embedding": weight("token_embd.weight"),
    "output": weight("output.weight"),
    "a bias": weight("blk.0.attn_q.bias"),
    "a matrix": weight("blk.2.ffn_down.weight"),
    "a norm": weight("blk.3.attn_norm.weight"),
    "Q8_0": quantized("Q8_0"),
    "Q4_0": quantized("Q4_0"),
    "F16": quantized("F16"),
    "tokens": swapped("tokenizer.ggml.tokens"),
    "merges": swapped("tokenizer.ggml.merges"),
    "pre-tokenizer": key("tokenizer.ggml.pre", "qwen2"),
    "bos": key("tokenizer.ggml.add_bos_token", True),
    "template": key("tokenizer.chat_template", "{{ messages }}"),
    "window": key("spikingbrain.attention.sliding_window", 17),
    "rotary base": key("spikingbrain.rope.freq_base", 20000.0),
    "epsilon": key("spikingbrain.attention.layer_norm_rms_epsilon", 1e-5),
    "rotary size": key("spikingbrain.rope.dimension_count", 16),
    "spikes": spiking("3"),
}


@pytest.fixture(scope="module")
def state(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "state"
    with Model(tiny) as model, Session(model, n_ctx=256, n_threads=1) as session:
        session.evaluate(TOKENS)
        session.save(path, TOKENS)
    return path


def load(model: Path, state: Path, **settings: object) -> list[int]:
    spikes = settings.pop("spikes", None)
    with (
        Model(model, spikes=spikes) as loaded,  # type: ignore[arg-type]
        Session(loaded, n_ctx=256, n_threads=1, **settings) as session,  # type: ignore[arg-type]
    ):
        return session.load(state)


@pytest.mark.parametrize("make", OTHER_FILES.values(), ids=list(OTHER_FILES))
def test_another_file_is_refused(make: Make, tiny: Path, state: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "other.gguf")
    with pytest.raises(StateError, match="belongs to another model or other settings"):
        load(tmp_path / "other.gguf", state)


@pytest.mark.parametrize(
    "settings", [{"spikes": 3.0}, {"type_k": "q8_0"}, {"type_k": "f32", "type_v": "f32"}], ids=str
)
def test_other_settings_are_refused(settings: dict[str, object], tiny: Path, state: Path) -> None:
    with pytest.raises(StateError, match=r"other settings|other KV cache types"):
        load(tiny, state, **settings)


def test_a_copy_under_another_name_is_the_same_model(tiny: Path, state: Path, tmp_path: Path) -> None:
    shutil.copy(tiny, tmp_path / "copy.gguf")
    assert load(tmp_path / "copy.gguf", state) == TOKENS
    assert load(tiny, state) == TOKENS


def test_spikes_are_part_of_the_state(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Model(tiny, spikes=3.0) as model, Session(model, n_ctx=256, n_threads=1) as session:
        session.evaluate(TOKENS)
        session.save(path, TOKENS)
    assert load(tiny, path, spikes=3.0) == TOKENS
    for spikes in (None, 0.0, 2.0):
        with pytest.raises(StateError, match="belongs to another model or other settings"):
            load(tiny, path, spikes=spikes)
