from __future__ import annotations

import numpy as np
import pytest

from sb_edge.arch.config import PRESETS
from sb_edge.arch.tensors import expected_tensors
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.util.errors import CheckpointError


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        account_for_tensors(Checkpoint.open(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_golden_checkpoint_is_complete(data):
    layout, table = account_for_tensors(Checkpoint.open(data / "gla_swa"))
    assert layout.attention_bias and layout.gate_rank == 16
    assert len({spec.gguf_name for spec in table.values()}) == len(table) == 59
    assert table["model.layers.0.attn.gk_proj.1.weight"].gguf_name == "blk.0.ssm_f_b.weight"
    assert table["model.layers.2.attn.g_norm.weight"].shape == (32,)
    assert "model.layers.1.attn.g_norm.weight" not in table


def test_7b_table_has_the_published_size():
    table = expected_tensors(PRESETS["7b"])
    assert sum(int(np.prod(spec.shape)) for spec in table.values()) == pytest.approx(7.62e9, rel=0.01)
    assert {spec.gguf_name.split(".")[-1] for spec in table.values()} == {"weight", "bias"}
    assert max(len(spec.gguf_name) for spec in table.values()) < 64


def test_tied_model_has_no_output():
    assert "lm_head.weight" in expected_tensors(PRESETS["7b"])
    assert "lm_head.weight" not in expected_tensors(PRESETS["1b"])


def test_small_and_sensitive_tensors_stay_f32():
    table = expected_tensors(PRESETS["tiny"])
    kept = {name for name, spec in table.items() if spec.keep_f32}
    assert kept == {name for name in table if "norm" in name or name.endswith(".bias") or "gk_proj" in name}


def test_merged_gate(golden_copy):
    """One projection instead of the pair, and no scales: a plain model with another gate."""
    tensors = golden_copy.tensors()
    for layer in (0, 2):
        gate = f"model.layers.{layer}.attn.gk_proj."
        tensors[gate + "weight"] = tensors.pop(gate + "1.weight") @ tensors.pop(gate + "0.weight")
        tensors[gate + "bias"] = tensors.pop(gate + "1.bias")
    golden_copy.save(tensors)
    layout, table = account_for_tensors(Checkpoint.open(golden_copy.folder))
    assert layout.gate_rank == 0 and not layout.quantized
    spec = table["model.layers.2.attn.gk_proj.weight"]
    assert spec.gguf_name == "blk.2.ssm_f_b.weight" and spec.shape == (64, 128) and not spec.keep_f32
    del tensors["model.layers.2.attn.gk_proj.weight"]
    golden_copy.save(tensors)
    assert "model.layers.2.attn.gk_proj.weight: is missing" in refusal(golden_copy.folder)


def test_gates_of_both_kinds(golden_copy):
    golden_copy.save(golden_copy.tensors() | {"model.layers.0.attn.gk_proj.weight": np.zeros((64, 128))})
    line = refusal(golden_copy.folder)
    assert "model.layers.0.attn.gk_proj.weight: merged gates and pairs are mixed" in line


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.0.attn.gk_proj.1.bias", "model.layers.3.mlp.up_proj.weight"]
)
def test_missing_tensor(golden_copy, name):
    tensors = golden_copy.tensors()
    del tensors[name]
    golden_copy.save(tensors)
    assert f"{name}: is missing" in refusal(golden_copy.folder)


def test_missing_output_hints_at_tying(golden_copy):
    tensors = golden_copy.tensors()
    del tensors["lm_head.weight"]
    golden_copy.save(tensors)
    assert "tie_word_embeddings" in refusal(golden_copy.folder)
    golden_copy.edit_config(tie_word_embeddings=True)
    account_for_tensors(Checkpoint.open(golden_copy.folder))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.layers.0.attn.rotary.inv_freq", "public gla_swa layout"),
        ("model.layers.1.attn.g_norm.weight", "attn_layers"),
        ("model.layers.0.attn.q_conv1d.weight", "short convolutions"),
    ],
)
def test_unknown_tensor(golden_copy, name, hint):
    golden_copy.save(golden_copy.tensors() | {name: np.zeros(4)})
    line = refusal(golden_copy.folder)
    assert f"{name}: is not a tensor of this model" in line and hint in line


def test_tied_model_with_an_output(golden_copy):
    golden_copy.edit_config(tie_word_embeddings=True)
    line = refusal(golden_copy.folder)
    assert "lm_head.weight: differs from the embeddings" in line and "tie_word_embeddings to false" in line
    tensors = golden_copy.tensors()
    golden_copy.save(tensors | {"lm_head.weight": tensors["model.embeddings.weight"]})
    _, table = account_for_tensors(Checkpoint.open(golden_copy.folder))
    assert "lm_head.weight" not in table


def test_an_adapter_beside_the_weights(golden_copy):
    (golden_copy.folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json: a PEFT adapter is not supported" in refusal(golden_copy.folder)


def test_misshapen_tensor(golden_copy):
    tensors = golden_copy.tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((128, 256))
    golden_copy.save(tensors)
    line = refusal(golden_copy.folder)
    assert (
        "model.layers.1.mlp.up_proj.weight: has the wrong shape (found [128, 256], expected [256, 128])"
        in line
    )


def test_config_that_does_not_fit(golden_copy):
    golden_copy.edit_config(vocab_size=300)
    assert "model.embeddings.weight: has the wrong shape" in refusal(golden_copy.folder)


def test_layer_map_that_does_not_fit(golden_copy):
    golden_copy.edit_config(attn_layers=[0, 2])
    assert "gk_proj" in refusal(golden_copy.folder)


def test_biases_are_all_or_none(golden_copy):
    tensors = golden_copy.tensors()
    without = {
        name: values
        for name, values in tensors.items()
        if not name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))
    }
    golden_copy.save(without)
    layout, table = account_for_tensors(Checkpoint.open(golden_copy.folder))
    assert not layout.attention_bias and len(table) == 59 - 12
    del tensors["model.layers.2.attn.k_proj.bias"]
    golden_copy.save(tensors)
    line = refusal(golden_copy.folder)
    assert "model.layers.2.attn.k_proj.bias: is missing" in line and "all or none" in line


def test_gate_rank_comes_from_the_checkpoint(golden_copy):
    tensors = golden_copy.tensors()
    for name in list(tensors):
        if name.endswith("gk_proj.0.weight"):
            tensors[name] = tensors[name][:7]
        if name.endswith("gk_proj.1.weight"):
            tensors[name] = tensors[name][:, :7]
    golden_copy.save(tensors)
    layout, _ = account_for_tensors(Checkpoint.open(golden_copy.folder))
    assert layout.gate_rank == 7


def test_gate_that_is_no_matrix(golden_copy):
    golden_copy.save(golden_copy.tensors() | {"model.layers.0.attn.gk_proj.0.weight": np.zeros(3)})
    assert "gk_proj.0.weight: has the wrong shape" in refusal(golden_copy.folder)


def test_model_without_gla_layers(golden_copy):
    tensors = golden_copy.tensors()
    golden_copy.save(
        {name: values for name, values in tensors.items() if "gk_proj" not in name and "g_norm" not in name}
    )
    golden_copy.edit_config(attn_layers=[0, 1, 2, 3])
    account_for_tensors(Checkpoint.open(golden_copy.folder))
