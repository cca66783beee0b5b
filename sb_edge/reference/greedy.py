"""Greedy generation with the step cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sb_edge.reference.network import Cache, SpikingBrain


@torch.inference_mode()
def greedy(model: SpikingBrain, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """Continue `prompt` with the likeliest token, `n_tokens` times; end tokens do not stop it.

    Args:
        prompt: at least one token id.

    Returns:
        The new tokens; between equal logits the lowest id wins.
    """
    device = model.model.norm.weight.device
    cache = Cache()
    pending = list(prompt)
    tokens: list[int] = []
    for _ in range(n_tokens):
        logits = model(torch.tensor([pending], device=device), cache)[0, -1]
        pending = [int(logits.argmax())]
        tokens += pending
    return tokens
