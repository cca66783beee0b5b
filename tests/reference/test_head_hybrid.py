"""GLA layers some of whose heads have window attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.reference.layers import GatedLinearAttention, HeadHybridAttention, SlidingWindowAttention
from sb_edge.reference.ops.naive import gated_linear_attention

WINDOW, D, GROUP = 5, 8, 2
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
    "rope_theta": 1e4,
    "attn_layers": [1],
}
CONFIG = SpikingBrainConfig(**SIZES)


def layers(
    kept: list[int],
) -> tuple[HeadHybridAttention, GatedLinearAttention, SlidingWindowAttention, Tensor]:
    """A hybrid, both plain layers with its weights, and 13 tokens."""
    torch.manual_seed(0)
    hybrid = HeadHybridAttention(CONFIG, True, 4, gated_linear_attention, kept).double()
    gla = GatedLinearAttention(CONFIG, True, 4, gated_linear_attention).double()
    window = SlidingWindowAttention(CONFIG, True).double()
    with torch.no_grad():
        for parameter in hybrid.parameters():
            parameter.normal_(std=0.5)
    gla.load_state_dict(hybrid.state_dict())
    shared = {name: x for name, x in hybrid.state_dict().items() if name in window.state_dict()}
    window.load_state_dict(shared)
    return hybrid, gla, window, torch.randn(2, 13, CONFIG.hidden_size, dtype=torch.float64)


@pytest.mark.parametrize("kept", [[0], [1], [2, 0]])
def test_each_head_is_that_of_the_plain_layer(kept: list[int]) -> None:
    """The output is a sum over heads: GLA's over some, the window layer's over the others."""
    hybrid, gla, window, x = layers(kept)
    with torch.no_grad():
        for layer, without in ((gla, kept), (window, hybrid.recurrent)):
            columns = layer.o_proj.weight.view(-1, 3, GROUP * D)
            columns[:, without] = 0
        expected = gla(x, (), 0)[0] + window(x, (), 0)[0]
        torch.testing.assert_close(hybrid(x, (), 0)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 4])
def test_pieces_give_what_the_whole_gives(piece: int) -> None:
    hybrid, _, _, x = layers([1])
    state: tuple[Tensor, ...] = ()
    parts = []
    with torch.no_grad():
        for at in range(0, x.shape[1], piece):
            y, state = hybrid(x[:, at : at + piece], state, at)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), hybrid(x, (), 0)[0], rtol=1e-12, atol=1e-12)
    assert [part.shape[1:3] for part in state[1:]] == [(WINDOW - 1, 1)] * 2 and state[0].shape[1] == 2


@pytest.mark.parametrize("heads", [[[0]], [[0, 1, 2], []], [[3], []], [[0, 0], []], [[], [0]]])
def test_heads_that_do_not_fit_are_refused(heads: list[list[int]]) -> None:
    SpikingBrainConfig(**SIZES, attn_heads=[[0, 2], []])
    with pytest.raises(ValueError, match="attn_heads: "):
        SpikingBrainConfig(**SIZES, attn_heads=heads)
