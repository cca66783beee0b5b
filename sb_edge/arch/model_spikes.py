"""The spike plan of a model: read and check it, choose another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sb_edge.arch.config import ARCH
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
"""Tensors that belong to a projection of another name."""


def present_projections(tensors: Iterable[str]) -> tuple[str, ...]:
    """Those of `PROJECTIONS` that a model has in some layer, in that order.

    Args:
        tensors: the names of its tensors in the GGUF.
    """
    stems = {match[1] for name in tensors if (match := _WEIGHT.fullmatch(name))}
    found = {STEMS.get(stem, stem) for stem in stems}
    return tuple(name for name in PROJECTIONS if name in found)


def require_projections(plan: SpikePlan, tensors: Iterable[str], path: Path | None = None) -> None:
    """Refuse a plan that codes the input of a projection which no layer has.

    Raises:
        SpikeError: names the first such projection.
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
    """The spike plan of a GGUF, None if it has none.

    Raises:
        GgufError: a spike key is unknown, missing or impossible, or the architecture has no spikes.
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
    """What the engine will do with these weights when it is told `spikes`.

    Args:
        header: the model's.
        spikes: None: as the file says; 0: no spikes; else the k of every coded projection, and of all
            projections of a file that codes none.

    Raises:
        GgufError: the GGUF's spike keys are wrong.
        SpikeError: as `check_plan`; or `spikes` is no k, or the architecture has no spikes.
    """
    plan = check_plan(header) if header.arch == ARCH else None
    if spikes is None:
        return plan
    if header.arch != ARCH:
        raise SpikeError(
            "this architecture has no spikes", path=header.files[0], found=header.arch, expected=ARCH
        )
    if spikes == 0:
        return None
    require_k(spikes, "k")
    return SpikePlan(k=spikes) if plan is None else plan.overridden(spikes)


def released_plan(tensors: Iterable[str]) -> SpikePlan:
    """`RELEASED_PLAN` for a model with these tensors (not all models have gates)."""
    present = present_projections(tensors)
    return replace(
        RELEASED_PLAN, projections=tuple(name for name in RELEASED_PLAN.projections if name in present)
    )


def choose_plan(
    current: SpikePlan | None, tensors: Iterable[str], k: float | None, projections: Sequence[str] | None
) -> SpikePlan | None:
    """The plan of a model after `--spike-k` and `--spike-projections`.

    A new k takes the place of every k that `current` has, the query's too, and leaves its KV rounding as it
    is. A model without a plan gets one that codes projections only.

    Args:
        current: what the model has, or would get, without these options.
        tensors: the names of its tensors in the GGUF.
        k: None: keep `current`.
        projections: the coded ones; None: those of `current`, or all that the model has.

    Raises:
        SpikeError: k is no positive number, there are projections but no k, or one of them is unknown or not
            in the model.
    """
    if k is None:
        if projections is not None:
            raise SpikeError(
                "projections are coded with a k", item="k", found="none", hint="give --spike-k too"
            )
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
    """As `choose_plan`, for a GGUF; a k of 0 takes its spikes away.

    Raises:
        GgufError: the GGUF's own spike keys are wrong, or its architecture has no spikes.
        SpikeError: as `check_plan` and `choose_plan`.
    """
    current = check_plan(header)
    if k == 0 and projections is None:
        return None
    if k is not None and header.arch != ARCH:
        item = "general.architecture"
        raise GgufError("has no spikes", path=header.files[0], item=item, found=header.arch, expected=ARCH)
    return choose_plan(current, (tensor.name for tensor in header.tensors), k, projections)
