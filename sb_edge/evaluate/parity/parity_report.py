"""Result of a comparison of engine and reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sb_edge.evaluate.parity.spike_counts import SpikeParity
from sb_edge.util.errors import ParityError
from sb_edge.util.logits import Agreement
from sb_edge.util.output import json_fields


@dataclass(frozen=True)
class EngineRun:
    """Comparison of a prompt evaluated `piece` tokens at a time.

    Attributes:
        piece: tokens per evaluation.
        agreement: comparison of the logits.
        layers: NMSE by tensor name, in graph order.
    """

    piece: int
    agreement: Agreement
    layers: dict[str, float]


@dataclass(frozen=True)
class Greedy:
    """Both sides' greedy continuations of the prompt, as token ids."""

    reference: list[int]
    engine: list[int]

    @property
    def first_difference(self) -> int | None:
        """Index of the first different token; None if all are equal."""
        pairs = zip(self.reference, self.engine, strict=True)
        return next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), None)


@dataclass(frozen=True)
class ParityReport:
    """Result of a comparison.

    Attributes:
        gguf: file name of the engine's model.
        reference: the checkpoint with dtype and device, or the recording.
        tokens: length of the prompt.
        kv_types: types of the engine's K and V.
        tolerance: maximum NMSE.
        runs: the whole prompt (piece = tokens), then one run per piece size.
        per_layer: whether layer outputs were compared.
        greedy: greedy continuations; None if not requested.
        spikes: comparison of spike counts; None without spikes or with a recording.
    """

    gguf: str
    reference: str
    tokens: int
    kv_types: tuple[str, str]
    tolerance: float
    runs: tuple[EngineRun, ...]
    per_layer: bool = False
    greedy: Greedy | None = None
    spikes: SpikeParity | None = None

    @property
    def worst(self) -> EngineRun:
        """The run with the largest NMSE."""
        return max(self.runs, key=lambda run: run.agreement.nmse)

    @property
    def first_divergent_layer(self) -> str | None:
        """First tensor of the worst run with an NMSE above the tolerance."""
        return next((name for name, value in self.worst.layers.items() if value > self.tolerance), None)

    @property
    def same_text(self) -> bool:
        """Whether the greedy continuations agree; True if not requested."""
        return self.greedy is None or self.greedy.first_difference is None

    @property
    def passed(self) -> bool:
        """Whether all runs are within the tolerance, and texts and spike counts agree."""
        within = self.worst.agreement.nmse <= self.tolerance
        return within and self.same_text and (self.spikes is None or self.spikes.passed)

    def to_json(self) -> dict[str, Any]:
        """The fields that docs/parity.md describes."""
        worst = self.worst
        document: dict[str, Any] = {
            **json_fields(self, "gguf", "reference"),
            **json_fields(worst.agreement),
            **json_fields(self, "tolerance", "passed", "tokens"),
            "pieces": [run.piece for run in self.runs],
            "type_k": self.kv_types[0],
            "type_v": self.kv_types[1],
            "runs": [{"piece": run.piece, **json_fields(run.agreement)} for run in self.runs],
        }
        if self.per_layer:
            document["layers"] = [{"name": name, "nmse": value} for name, value in worst.layers.items()]
            document["first_divergent_layer"] = self.first_divergent_layer
        if self.greedy:
            document["greedy"] = {
                **json_fields(self.greedy, "reference", "engine"),
                "identical": self.same_text,
                "first_difference": self.greedy.first_difference,
            }
        if self.spikes:
            document |= self.spikes.to_json()
        return document

    def require_passed(self) -> None:
        """Raise an error if the comparison failed.

        Raises:
            ParityError: names the worst difference.
        """
        if self.spikes:
            self.spikes.require_passed(self.gguf)
        worst = self.worst
        if worst.agreement.nmse > self.tolerance:
            raise ParityError(
                "the engine does not agree with the reference",
                path=self.gguf,
                item=self.first_divergent_layer or f"position {worst.agreement.worst_position}",
                found=f"NMSE {worst.agreement.nmse:.2e}",
                expected=f"at most {self.tolerance:.0e}",
                hint="set --tolerance for quantized weights; --per-layer shows the first divergent layer",
            )
        if self.greedy and not self.same_text:
            raise ParityError(
                "the greedy texts differ", path=self.gguf, item=f"new token {self.greedy.first_difference}"
            )
