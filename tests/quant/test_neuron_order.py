"""Neurons in another order: those that fire together are neighbours, and the model computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sb_edge.convert.convert import convert_checkpoint
from sb_edge.gguf.reader import read_header
from sb_edge.quant.quantize import quantize
from sb_edge.quant.sparse import neuron_order
from sb_edge.quant.sparse.neuron_order import firing_order, movable_layers, write_reordered
from sb_edge.runtime.session import Model, Session
from sb_edge.util.logits import nmse
from sb_edge.util.tolerances import ENGINE_F16, ENGINE_F32

DATA = Path(__file__).parents[1] / "data"
TOKENS = list(range(2, 40))


def test_groups_that_fire_together_end_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(6), 10))
    firing = (rng.random((200, 6)) < 0.3)[:, group]
    order = firing_order(firing)
    assert sorted(order) == list(range(60))
    assert np.count_nonzero(np.diff(group[order])) == 5
    monkeypatch.setattr(neuron_order, "CLUSTERED", 59)
    often = firing.sum(axis=0)[firing_order(firing)]
    assert np.all(np.diff(often) <= 0)


def test_neurons_that_never_fire_and_tiny_layers() -> None:
    assert sorted(firing_order(np.zeros((5, 7), bool))) == list(range(7))
    assert firing_order(np.array([[False, True]])).tolist() == [1, 0]


@pytest.mark.engine
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_a_reordered_model_computes_the_same(outtype: str, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    convert_checkpoint(DATA / "gla_swa", source, outtype=outtype)
    header = read_header(source)
    width = header.integer("feed_forward_length")
    rng = np.random.default_rng(1)
    orders = {layer: rng.permutation(width) for layer in movable_layers(header)}
    assert len(orders) == header.integer("block_count")
    (tmp_path / "moved").mkdir()
    moved = write_reordered(header, tmp_path / "moved", orders)
    assert moved.read_bytes() != source.read_bytes()
    logits = []
    for path in (source, moved):
        with Model(path) as model, Session(model, n_ctx=64, type_k="f32", type_v="f32") as session:
            logits.append(session.evaluate(TOKENS, all_logits=True))
    assert nmse(*logits) <= (ENGINE_F32 if outtype == "f32" else ENGINE_F16).nmse


@pytest.mark.engine
def test_quantized_neurons_cannot_be_moved(golden_gguf: Path, tmp_path: Path) -> None:
    quantize(golden_gguf, tmp_path / "q.gguf", "Q8_0", n_threads=1)
    assert movable_layers(read_header(tmp_path / "q.gguf")) == []
