"""Upcycling to experts: the same function, the report's factor, shares that add up, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import exit_code, sb_edge
from torch.nn import functional

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.upcycle import expert_scale, upcycle
from sb_edge.reference.experts import MixtureOfExperts
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import CheckpointError, ConfigError
from sb_edge.util.logits import nmse
from sb_edge.util.tolerances import UPCYCLE_EXACT, UPCYCLE_ROUTED, UPCYCLE_SCALED_GATE

TOKENS = torch.randint(200, (1, 50), generator=torch.Generator().manual_seed(1))


def logits(folder: Path) -> np.ndarray:
    with torch.no_grad():
        return SpikingBrain.from_checkpoint(folder, dtype=torch.float64)(TOKENS)[0].numpy()


def test_the_factor_is_the_reports() -> None:
    assert expert_scale(1, 1, 16) == pytest.approx((16 / 17) ** (1 / 3))
    assert round(expert_scale(1, 1, 16), 2) == 0.98


@pytest.mark.parametrize(("experts", "active", "shared"), [(16, 1, 1), (5, 2, 1), (4, 1, 3)])
def test_the_function_is_kept(data: Path, tmp_path: Path, experts: int, active: int, shared: int) -> None:
    upcycle(
        data / "gla_swa", tmp_path / "moe",
        experts=experts, active=active, shared=shared, dense_layers=[0], router_logits=0.0,
    )  # fmt: skip
    dense = logits(data / "gla_swa")
    assert nmse(dense, logits(tmp_path / "moe")) <= UPCYCLE_EXACT.nmse
    upcycle(data / "gla_swa", tmp_path / "routed", experts=experts, active=active, shared=shared)
    assert nmse(dense, logits(tmp_path / "routed")) <= UPCYCLE_ROUTED.nmse


def test_the_reports_own_form_keeps_it_roughly(data: Path, tmp_path: Path) -> None:
    upcycle(data / "gla_swa", tmp_path / "moe", scale_gate=True, router_logits=0.0)
    found, dense = Checkpoint.open(tmp_path / "moe"), Checkpoint.open(data / "gla_swa")
    for projection in ("gate_proj", "up_proj", "down_proj"):
        experts = found.read(f"model.layers.1.mlp.experts.{projection}.weight")
        expected = dense.read(f"model.layers.1.mlp.{projection}.weight") * np.float32(expert_scale(1, 1, 16))
        assert experts.shape == (16, *expected.shape)
        assert all((expert == expected).all() for expert in experts)
    error = nmse(logits(data / "gla_swa"), logits(tmp_path / "moe"))
    assert UPCYCLE_EXACT.nmse < error < UPCYCLE_SCALED_GATE.nmse


def test_tokens_go_to_different_experts(data: Path, tmp_path: Path) -> None:
    upcycle(data / "gla_swa", tmp_path / "moe", experts=4)
    model = SpikingBrain.from_checkpoint(tmp_path / "moe")
    used: set[int] = set()
    mlp = model.model.layers[1].mlp
    mlp.router.register_forward_hook(lambda _module, _inputs, output: used.update(output.argmax(-1).tolist()))
    with torch.no_grad():
        model(TOKENS)
    assert len(used) >= 3


def test_the_mixture_is_the_formula() -> None:
    torch.manual_seed(0)
    config = SpikingBrainConfig(
        vocab_size=8, hidden_size=6, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=5, max_position_embeddings=8, sliding_window=8, rope_theta=1e4,
        num_experts=3, num_experts_per_tok=2, num_shared_experts=2,
    )  # fmt: skip
    mixture = MixtureOfExperts(config).double()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    found = mixture(x)
    for token, y in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        p = (mixture.router.weight @ token).softmax(0)
        expected = mixture.shared_experts(token)
        for expert in p.argsort(descending=True)[:2].tolist():
            gate, up, down = (
                getattr(mixture.experts, name).weight[expert]
                for name in ("gate_proj", "up_proj", "down_proj")
            )
            expected = expected + p[expert] * (down @ (functional.silu(gate @ token) * (up @ token)))
        torch.testing.assert_close(y, expected)


def test_refusals(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="scales of W8ASpike"):
        upcycle(data / "w8aspike", tmp_path / "moe")
    with pytest.raises(ConfigError, match="moe_dense_layers: layer 99"):
        upcycle(data / "gla_swa", tmp_path / "moe", dense_layers=[99])
    with pytest.raises(ConfigError, match="num_experts_per_tok: 5 of 4 experts"):
        upcycle(data / "gla_swa", tmp_path / "moe", experts=4, active=5)
    assert not (tmp_path / "moe").exists()
    upcycle(data / "gla_swa", tmp_path / "moe", experts=2)
    with pytest.raises(CheckpointError, match="found 2 experts"):
        upcycle(tmp_path / "moe", tmp_path / "again")


def test_the_command_line(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "gla_swa", tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    done = sb_edge(
        "upcycle", tmp_path / "dense", "-o", tmp_path / "moe", "--experts", "4", "--dense-layers", "0"
    )
    assert done.returncode == 0, done.stderr
    assert "4 experts, 1 active and 1 shared" in done.stdout
    assert (tmp_path / "moe" / "tokenizer.json").read_text() == "{}"
    assert exit_code("convert", tmp_path / "moe", "--outfile", tmp_path / "moe.gguf") == 1
