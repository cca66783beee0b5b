"""The spike plan of a model: read and check it, choose another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sb_edge.arch import ARCH
from sb_edge.arch.spike_plan import (
    PROJECTIONS,
    RELEASED_PLAN,
    SPIKE_KEYS,
    SpikePlan,
    require_k,
)
from sb_edge.gguf.reader import GgufHeader
from sb_edge.util.errors import GgufError, SpikeError

_WEIGHT = re.compile(r"blk\.\d+\.(\w+)\.weight")
STEMS = {"ssm_f_a": "ssm_f", "ssm_f_b": "ssm_f"}
"""Stems of tensors whose projection has another name."""


def present_projections(tensors: Iterable[str]) -> tuple[str, ...]:
    """The projections out of `PROJECTIONS` that at least one layer of a model has, in that order.

    Args:
        tensors: names of the model's tensors in the GGUF.
    """
    stems = {match[1] for name in tensors if (match := _WEIGHT.fullmatch(name))}
    found = {STEMS.get(stem, stem) for stem in stems}
    return tuple(name for name in PROJECTIONS if name in found)


def require_projections(plan: SpikePlan, tensors: Iterable[str], path: Path | None = None) -> None:
    """Refuse a plan that codes the input of a projection that no layer has.

    Raises:
        SpikeError: no layer has this projection; names the first one.
    """
    present = present_projections(tensors)
    absent = [name for name in plan.projections if name not in present]
    if absent:
        raise SpikeError(
            "the model has no such projection",
            path=path,
            item=SPIKE_KEYS + "projections",
            found=absent[0],
            expected=" ".join(present) or "none: it has no layers",
        )


def check_plan(header: GgufHeader) -> SpikePlan | None:
    """The spike plan of a GGUF; None if it has no spike keys.

    Raises:
        GgufError: a spike key is unknown, missing or invalid, or the architecture has no spikes.
        SpikeError: a coded projection has no tensor.
    """
    path = header.files[0]
    plan = SpikePlan.from_metadata(header.metadata, path)
    if plan is None:
        return None
    if header.arch != ARCH:
        raise GgufError(
            "spike keys belong to another architecture",
            path=path,
            item=SPIKE_KEYS + "k",
            found=header.arch,
            expected=ARCH,
        )
    require_projections(plan, (tensor.name for tensor in header.tensors), path)
    return plan


def effective_plan(header: GgufHeader, spikes: float | None) -> SpikePlan | None:
    """The spike plan that the engine uses for a model under a setting of `spikes`.

    Args:
        header: header of the model.
        spikes: None: the plan of the file; 0: no spikes; otherwise the k of every coded projection, or of all
            projections if the file has no plan.

    Raises:
        GgufError: the spike keys of the GGUF are invalid.
        SpikeError: as `check_plan`; or `spikes` is not a valid k, or the architecture does not support
            spikes.
    """
    plan = check_plan(header) if header.arch == ARCH else None
    if spikes is None:
        return plan
    if header.arch != ARCH:
        raise SpikeError(
            "this architecture has no spikes",
            path=header.files[0],
            found=header.arch,
            expected=ARCH,
        )
    if spikes == 0:
        return None
    require_k(spikes, "k")
    return SpikePlan(k=spikes) if plan is None else plan.overridden(spikes)


def released_plan(tensors: Iterable[str]) -> SpikePlan:
    """`RELEASED_PLAN`, limited to the projections of a model with these tensors."""
    present = present_projections(tensors)
    return replace(
        RELEASED_PLAN, projections=tuple(name for name in RELEASED_PLAN.projections if name in present)
    )


def choose_plan(
    current: SpikePlan | None, tensors: Iterable[str], k: float | None, projections: Sequence[str] | None
) -> SpikePlan | None:
    """The plan of a model after a new k or new coded projections.

    A new k replaces every k of `current`, including the query's; KV rounding does not change. A model without
    a plan gets one that codes only projections.

    Args:
        current: plan of the model without this change.
        tensors: names of the model's tensors in the GGUF.
        k: the new k; None keeps `current`.
        projections: coded projections; None: those of `current`, or all of the model.

    Raises:
        SpikeError: k is not a positive number, projections are given without a k, or a projection is unknown
            or not in the model.
    """
    if k is None:
        if projections is not None:
            raise SpikeError("coded projections need a k", item="k", found="none", hint="give --spike-k too")
        return current
    require_k(k, "k")
    names = list(tensors)
    if current is None:
        plan = SpikePlan(present_projections(names) if projections is None else tuple(projections), k)
    else:
        plan = replace(
            current,
            projections=current.projections if projections is None else tuple(projections),
            k=k,
            layer_k=None,
            query_k=k if current.query_k else 0.0,
        )
    require_projections(plan, names)
    return plan


def change_plan(
    header: GgufHeader, k: float | None, projections: Sequence[str] | None = None
) -> SpikePlan | None:
    """As `choose_plan`, for a GGUF; k = 0 removes its plan.

    Raises:
        GgufError: the spike keys of the GGUF are invalid, or its architecture has no spikes.
        SpikeError: as `check_plan` and `choose_plan`.
    """
    current = check_plan(header)
    if k == 0 and projections is None:
        return None
    if k is not None and header.arch != ARCH:
        item = "general.architecture"
        raise GgufError("has no spikes", path=header.files[0], item=item, found=header.arch, expected=ARCH)
    return choose_plan(current, (tensor.name for tensor in header.tensors), k, projections)
