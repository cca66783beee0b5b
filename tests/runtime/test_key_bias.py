"""Key biases too large for a narrow cache: below the limits parity holds, above them the cache is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sb_edge.arch.config import PRESETS
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.evaluate.parity.agreement import against_checkpoint
from sb_edge.evaluate.parity.engine_side import KvType

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("size", "kv_type", "is_said"),
    [(30, "f16", False), (35, "f16", True), (1.9, "q8_0", False), (2.1, "q8_0", True), (41, "f32", False)],
)
def test_a_cache_that_is_too_narrow_for_key_biases_is_said(
    size: float, kv_type: KvType, is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, model = tmp_path / "checkpoint", tmp_path / "model.gguf"
    config = PRESETS["tiny"].model_copy(update={"vocab_size": 320})
    write_random_checkpoint(config, checkpoint, attention_bias=True, dtype="f32")
    weights = load_file(checkpoint / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, values in weights.items():
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            drawn = rng.standard_normal(values.shape).astype(np.float32)
            rms = min(size, 2) if "q_proj" in name else size
            weights[name] = drawn * np.float32(rms / np.sqrt(np.mean(drawn**2)))
    save_file(weights, checkpoint / "model.safetensors")
    convert_checkpoint(checkpoint, model, outtype="f32")
    report = against_checkpoint(model, checkpoint, type_k=kv_type, type_v=kv_type, n_tokens=64)
    said = capsys.readouterr().err
    assert ("attn_k.bias: keys lose precision" in said) is is_said
    assert said.count("keys lose precision") <= 1
    if not is_said:
        report.require_passed()
