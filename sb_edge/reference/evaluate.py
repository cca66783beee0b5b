"""The reference as `sb_edge.parity` asks it: token lists in, numpy out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sb_edge.parity import Rows
from sb_edge.reference.device import describe_device, pick_device
from sb_edge.reference.generate import greedy
from sb_edge.reference.model import SpikingBrain


class Reference:
    """A checkpoint loaded with the plain recurrence.

    Args:
        checkpoint: a folder in the public layout.
        device: a name for `pick_device`.
        dtype: of weights and activations; states, norms and softmax take float32 at least.

    Raises:
        CheckpointError, ConfigError, DeviceError.
    """

    def __init__(
        self, checkpoint: Path, *, device: str, dtype: Literal["float32", "float64", "bfloat16"]
    ) -> None:
        place = pick_device(device)
        self.device = describe_device(place)
        types = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
        self._place = place
        self._model = SpikingBrain.from_checkpoint(
            checkpoint, dtype=types[dtype], device=place, attention="naive"
        )
        self.n_vocab = self._model.config.vocab_size

    @torch.inference_mode()
    def rows(self, tokens: Sequence[int], *, per_layer: bool) -> Rows:
        """All logits of a prompt, [T, vocab], and every block's output if asked for."""
        layers: dict[str, np.ndarray] = {}

        def collect(name: str, x: Tensor) -> None:
            layers[name] = _to_numpy(x[0])

        ids = torch.tensor([list(tokens)], device=self._place)
        logits = self._model(ids, on_tensor=collect if per_layer else None)
        return Rows(_to_numpy(logits[0]), layers)

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """`generate.greedy` on this model."""
        return greedy(self._model, prompt, n_tokens)


def _to_numpy(x: Tensor) -> np.ndarray:
    """numpy has no bfloat16."""
    wide: np.ndarray = (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
    return wide
