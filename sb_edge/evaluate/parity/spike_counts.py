"""Spike counts of the engine against the reference's, projection by projection.

Coding is discontinuous: one count that flips on a rounding edge moves everything after it. So each half of a
block is compared from the same inputs: the reference computes its counts from what went into that half in the
engine. The counts of both sides' own runs are compared as well, and shown; they are not judged.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.util.errors import ParityError

if TYPE_CHECKING:
    from sb_edge.runtime.session import Model

Counts = dict[tuple[int, str], NDArray[np.int32]]
"""(layer, projection) to the counts at its input, [T, n]."""

_INPUT_FILTER = r"embd|ffn_inp-\d+|l_out-\d+"


@dataclass(frozen=True)
class BlockInputs:
    """What goes into the two halves of a block, float32 [T, hidden]: attention, and feed-forward network."""

    attention: NDArray[np.float32]
    ffn: NDArray[np.float32]


@dataclass(frozen=True)
class EngineSpikes:
    """The engine's counts on a prompt, and the inputs of its blocks, in order."""

    counts: Counts
    inputs: tuple[BlockInputs, ...]


@dataclass(frozen=True)
class ProjectionCounts:
    """The counts at one projection's input, compared.

    Attributes:
        layer: from 0.
        projection: one of `PROJECTIONS`.
        total: counts compared, T * n.
        differing: those that are not the same.
        largest_difference: between two of them.
    """

    layer: int
    projection: str
    total: int
    differing: int
    largest_difference: int


@dataclass(frozen=True)
class CountAgreement:
    """Counts of several projections; those that share one input are counted once each."""

    projections: tuple[ProjectionCounts, ...]

    @cached_property
    def total(self) -> int:
        """Counts compared."""
        return sum(found.total for found in self.projections)

    @cached_property
    def differing(self) -> int:
        """Counts that are not the same."""
        return sum(found.differing for found in self.projections)

    @cached_property
    def largest_difference(self) -> int:
        """Between two counts."""
        return max((found.largest_difference for found in self.projections), default=0)

    @property
    def identical(self) -> float:
        """Share of identical counts, 0 to 1."""
        return 1 - self.differing / max(self.total, 1)

    @property
    def worst(self) -> ProjectionCounts | None:
        """The projection with the largest share of differing counts, the first such; None if none differ."""
        differing = [found for found in self.projections if found.differing]
        return max(differing, key=lambda found: found.differing / found.total, default=None)

    def of(self, projection: str) -> CountAgreement:
        """One projection, in all layers that have it."""
        return CountAgreement(tuple(found for found in self.projections if found.projection == projection))


@dataclass(frozen=True)
class SpikeParity:
    """What a comparison of spike counts found.

    Attributes:
        same_inputs: each half of a block from the engine's inputs; judged.
        end_to_end: each side from the prompt; shown.
        required: share of identical counts to ask for.
        off_by_one: ask for the others to be one apart, too.
    """

    same_inputs: CountAgreement
    end_to_end: CountAgreement
    required: float
    off_by_one: bool = True

    @property
    def passed(self) -> bool:
        """Whether enough counts are identical, and the others near enough."""
        near = not self.off_by_one or self.same_inputs.largest_difference <= 1
        return near and self.same_inputs.identical >= self.required

    def document(self) -> dict[str, Any]:
        """The JSON form; docs/parity.md describes the fields."""
        found, whole = self.same_inputs, self.end_to_end
        return {
            "spike_counts_identical": found.identical,
            "spike_counts_total": found.total,
            "spike_counts_differing": found.differing,
            "spike_counts_largest_difference": found.largest_difference,
            "spike_counts_worst": None if found.worst is None else asdict(found.worst),
            "spike_counts_required": self.required,
            "spike_counts_passed": self.passed,
            "spike_counts_end_to_end": {
                "identical": whole.identical,
                "differing": whole.differing,
                "largest_difference": whole.largest_difference,
            },
            "spike_counts": [asdict(projection) for projection in found.projections],
        }

    def require_passed(self, gguf: str) -> None:
        """Turn failure into an error.

        Raises:
            ParityError: names the worst projection.
        """
        worst = self.same_inputs.worst
        if self.passed or worst is None:
            return
        share, apart = self.same_inputs.identical, self.same_inputs.largest_difference
        raise ParityError(
            "the engine's spike counts are not the reference's",
            path=gguf,
            item=f"{worst.projection} in layer {worst.layer}",
            found=f"{share:.4%} identical, up to {apart} apart",
            expected=f"at least {self.required:.4%}" + (", the others off by one" if self.off_by_one else ""),
            hint="for quantized weights state --counts-identical",
        )


def compare_counts(reference: Counts, other: Counts) -> CountAgreement:
    """Every projection that either side codes, in the reference's order.

    Raises:
        ParityError: a projection is coded on one side only, or the counts have other shapes.
    """
    for layer, projection in sorted(reference.keys() ^ other.keys()):
        side = "reference" if (layer, projection) in other else "engine"
        raise ParityError(f"its input is not coded in the {side}", item=f"{projection} in layer {layer}")
    return CountAgreement(tuple(_compare(*key, counts, other[key]) for key, counts in reference.items()))


def observe_engine(model: Model, tokens: Sequence[int], kv_type: str) -> EngineSpikes:
    """Run a prompt through the engine for its counts and its blocks' inputs.

    Args:
        model: one with a spike plan.
        tokens: the prompt.
        kv_type: type of K and V.
    """
    from sb_edge.runtime.session import Session
    from sb_edge.runtime.spike_counters import CountRecorder

    recorder = CountRecorder(model)
    rows: dict[str, list[NDArray[np.float32]]] = defaultdict(list)

    def on_tensor(name: str, values: NDArray[Any]) -> None:
        recorder.on_tensor(name, values)
        if re.fullmatch(_INPUT_FILTER, name):
            rows[name].append(values)

    with Session(
        model,
        n_ctx=len(tokens),
        type_k=kv_type,
        type_v=kv_type,
        on_tensor=on_tensor,
        tensor_filter=f"{_INPUT_FILTER}|{recorder.tensor_filter}",
    ) as session:
        session.evaluate(tokens, all_logits=True)
    inputs = {name: np.concatenate(parts) for name, parts in rows.items()}
    layers = sum(name.startswith("l_out-") for name in inputs)
    blocks = (
        BlockInputs(inputs[f"l_out-{layer - 1}" if layer else "embd"], inputs[f"ffn_inp-{layer}"])
        for layer in range(layers)
    )
    return EngineSpikes({key: found.counts for key, found in recorder.counts().items()}, tuple(blocks))


def _compare(
    layer: int, projection: str, ours: NDArray[np.int32], theirs: NDArray[np.int32]
) -> ProjectionCounts:
    if ours.shape != theirs.shape or not ours.size:
        raise ParityError(
            "counts of another shape",
            item=f"{projection} in layer {layer}",
            found=list(theirs.shape),
            expected=f"{list(ours.shape)} as in the reference, not empty",
        )
    apart = np.abs(ours.astype(np.int64) - theirs)
    return ProjectionCounts(layer, projection, ours.size, int(np.count_nonzero(apart)), int(apart.max()))
