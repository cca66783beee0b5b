"""Compare spike counts of engine and reference by projection.

Coding is discontinuous: one count that changes at a rounding edge changes all later values. So each half of a
block is compared on the same inputs: the reference computes its counts from the engine's inputs of that half.
The counts of independent runs of both sides are reported, too, but do not affect the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.util.errors import ParityError
from sb_edge.util.output import json_fields, to_json

Counts = dict[tuple[int, str], NDArray[np.int32]]
"""Counts at the input of each (layer, projection), [T, n]."""


@dataclass(frozen=True)
class ProjectionCounts:
    """Comparison of the counts at one projection's input.

    Attributes:
        layer: index of the layer, from 0.
        projection: one of `PROJECTIONS`.
        total: number of compared counts, T * n.
        differing: number of different counts.
        largest_difference: largest difference of two counts.
    """

    layer: int
    projection: str
    total: int
    differing: int
    largest_difference: int


@dataclass(frozen=True)
class CountAgreement:
    """Comparison of the counts of several projections; each projection counts, even with a shared input."""

    projections: tuple[ProjectionCounts, ...]

    @cached_property
    def total(self) -> int:
        """Number of compared counts."""
        return sum(found.total for found in self.projections)

    @cached_property
    def differing(self) -> int:
        """Number of different counts."""
        return sum(found.differing for found in self.projections)

    @cached_property
    def largest_difference(self) -> int:
        """Largest difference of two counts."""
        return max((found.largest_difference for found in self.projections), default=0)

    @property
    def identical(self) -> float:
        """Share of identical counts, 0 to 1."""
        return 1 - self.differing / max(self.total, 1)

    @property
    def worst(self) -> ProjectionCounts | None:
        """The first projection with the largest share of different counts; None if all are equal."""
        differing = [found for found in self.projections if found.differing]
        return max(differing, key=lambda found: found.differing / found.total, default=None)

    def of(self, projection: str) -> CountAgreement:
        """The comparison of one projection in all layers."""
        return CountAgreement(tuple(found for found in self.projections if found.projection == projection))


@dataclass(frozen=True)
class SpikeParity:
    """Result of a comparison of spike counts.

    Attributes:
        same_inputs: comparison of each half of a block on the engine's inputs; decides the result.
        end_to_end: comparison of independent runs from the prompt; for information.
        required: required share of identical counts.
        off_by_one: whether the other counts may differ by at most one.
    """

    same_inputs: CountAgreement
    end_to_end: CountAgreement
    required: float
    off_by_one: bool = True

    @property
    def passed(self) -> bool:
        """Whether enough counts are identical, and the others differ by no more than allowed."""
        near = not self.off_by_one or self.same_inputs.largest_difference <= 1
        return near and self.same_inputs.identical >= self.required

    def to_json(self) -> dict[str, Any]:
        """The fields that docs/parity.md describes."""
        found = self.same_inputs
        return {
            "spike_counts_identical": found.identical,
            "spike_counts_total": found.total,
            "spike_counts_differing": found.differing,
            "spike_counts_largest_difference": found.largest_difference,
            "spike_counts_worst": to_json(found.worst),
            "spike_counts_required": self.required,
            "spike_counts_passed": self.passed,
            "spike_counts_end_to_end": json_fields(
                self.end_to_end, "identical", "differing", "largest_difference"
            ),
            "spike_counts": to_json(found.projections),
        }

    def require_passed(self, gguf: str) -> None:
        """Raise an error if the comparison failed.

        Raises:
            ParityError: names the worst projection.
        """
        worst = self.same_inputs.worst
        if self.passed or worst is None:
            return
        share, apart = self.same_inputs.identical, self.same_inputs.largest_difference
        raise ParityError(
            "the engine's spike counts differ from the reference's",
            path=gguf,
            item=f"{worst.projection} in layer {worst.layer}",
            found=f"{share:.4%} identical, up to {apart} apart",
            expected=f"at least {self.required:.4%}" + (", the others off by one" if self.off_by_one else ""),
            hint="set --counts-identical for quantized weights",
        )


def compare_counts(reference: Counts, other: Counts) -> CountAgreement:
    """Compare every coded projection, in the reference's order.

    Raises:
        ParityError: a projection is coded on one side only, or the counts have different shapes.
    """
    for layer, projection in sorted(reference.keys() ^ other.keys()):
        side = "reference" if (layer, projection) in other else "engine"
        raise ParityError(f"the input is not coded in the {side}", item=f"{projection} in layer {layer}")
    return CountAgreement(tuple(_compare(*key, counts, other[key]) for key, counts in reference.items()))


def _compare(
    layer: int, projection: str, ours: NDArray[np.int32], theirs: NDArray[np.int32]
) -> ProjectionCounts:
    if ours.shape != theirs.shape or not ours.size:
        raise ParityError(
            "the counts have another shape",
            item=f"{projection} in layer {layer}",
            found=list(theirs.shape),
            expected=f"{list(ours.shape)} as in the reference, not empty",
        )
    apart = np.abs(ours.astype(np.int64) - theirs)
    return ProjectionCounts(layer, projection, ours.size, int(np.count_nonzero(apart)), int(apart.max()))
