"""The reference's side of a comparison: token lists in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.evaluate.parity.engine_side import BlockInputs, Rows
from sb_edge.evaluate.parity.spike_counts import Counts
from sb_edge.reference.device import describe_device, pick_device
from sb_edge.reference.greedy import greedy
from sb_edge.reference.network import SpikingBrain
from sb_edge.reference.spiking import Site, watch_counts


class Reference:
    """A checkpoint loaded with the plain recurrence.

    Args:
        checkpoint: folder in the public layout.
        device: name for `pick_device`.
        dtype: type of weights and activations; states, norms and softmax use at least float32.
        spikes: spike plan, whatever the checkpoint's config says; None: no spikes.

    Raises:
        CheckpointError, ConfigError, DeviceError.
        SpikeError: the plan is for another number of layers.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        device: str,
        dtype: Literal["float32", "float64", "bfloat16"],
        spikes: SpikePlan | None = None,
    ) -> None:
        place = pick_device(device)
        self.device = describe_device(place)
        types = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
        self._place = place
        self._model = SpikingBrain.from_checkpoint(
            checkpoint, dtype=types[dtype], device=place, attention="naive"
        )
        self._model.set_spikes(spikes)
        self.config = self._model.config

    @torch.inference_mode()
    def rows(self, tokens: Sequence[int], *, per_layer: bool) -> Rows:
        """Logits [T, vocab] and spike counts of a prompt; with `per_layer` also every block's output."""
        layers: dict[str, np.ndarray] = {}
        counts: Counts = {}

        def collect(name: str, x: Tensor) -> None:
            if not name.startswith("spike_"):
                layers[name] = _to_numpy(x[0])

        ids = torch.tensor([list(tokens)], device=self._place)
        with ExitStack() as stack:
            for layer, block in enumerate(self._model.model.layers):
                stack.enter_context(watch_counts(block, _collector(counts, layer)))
            logits = self._model(ids, on_tensor=collect if per_layer else None)
        return Rows(_to_numpy(logits[0]), layers, counts)

    @torch.inference_mode()
    def counts(self, inputs: Sequence[BlockInputs]) -> Counts:
        """Spike counts in each half of each block, computed from the given inputs."""
        counts: Counts = {}
        blocks: Iterable[Any] = self._model.model.layers
        for layer, (block, given) in enumerate(zip(blocks, inputs, strict=True)):
            with watch_counts(block, _collector(counts, layer)):
                block.attn(block.attn_norm(self._tensor(given.attention)), (), 0)
                block.mlp(block.mlp_norm(self._tensor(given.ffn)))
        return counts

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """Greedy continuation of a prompt, `n_tokens` token ids."""
        return greedy(self._model, prompt, n_tokens)

    def _tensor(self, rows: np.ndarray) -> Tensor:
        """[T, hidden] -> [1, T, hidden] in the model's dtype, on its device."""
        return torch.from_numpy(rows)[None].to(self._model.model.norm.weight)


def _collector(counts: Counts, layer: int) -> Callable[[Site, Tensor], None]:
    def collect(site: Site, found: Tensor) -> None:
        shared = found[0].cpu().numpy()
        counts.update({(layer, projection): shared for projection in site})

    return collect


def _to_numpy(x: Tensor) -> np.ndarray:
    """Convert to numpy; bfloat16, which numpy lacks, becomes float32."""
    wide: np.ndarray = (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
    return wide
