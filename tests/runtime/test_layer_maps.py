"""Any layer map runs, and gives the reference's logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sb_edge.arch.config import PRESETS
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.runtime.session import Model, Session
from sb_edge.util.tolerances import ENGINE_F32

pytestmark = pytest.mark.engine

SHAPES = {
    "all GLA": {"attn_layers": []},
    "all SWA": {"attn_layers": [0, 1, 2, 3]},
    "SWA first": {"attn_layers": [0, 2, 3]},
    "G = 1": {"num_key_value_heads": 4},
    "G = 3, d = 20": {"hidden_size": 120, "num_attention_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "window beyond the prompt": {"sliding_window": 4096},
    "window of one": {"sliding_window": 1},
    "theta": {"rope_theta": 1e6},
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_engine_equals_reference(change: dict[str, object], bias: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the reference needs PyTorch")
    from sb_edge.evaluate.parity.reference_side import Reference

    config = PRESETS["tiny"].model_copy(update=change)
    write_random_checkpoint(config, tmp_path / "model", attention_bias=bias, seed=3, dtype="f32")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf", outtype="f32")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 75).tolist()
    with (
        Model(tmp_path / "model.gguf") as model,
        Session(model, n_ctx=256, type_k="f32", type_v="f32") as session,
    ):
        pieces = [session.evaluate(tokens[at : at + 29], all_logits=True) for at in range(0, len(tokens), 29)]
    found = np.concatenate(pieces)
    reference = Reference(tmp_path / "model", device="cpu", dtype="float32")
    expected = reference.rows(tokens, per_layer=False).logits
    assert ((found - expected) ** 2).sum() / (expected**2).sum() < ENGINE_F32.nmse
