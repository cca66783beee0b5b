"""The spike plan: projections whose inputs are coded as spike counts, and their k. The GGUF stores it.

The coding has an adaptive threshold per token (report, section 3.3): Vth = clamp(mean|x| / k), s = round(x /
Vth).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sb_edge.arch import ARCH
from sb_edge.util.errors import GgufError, SpikeError

PROJECTIONS = (
    "attn_q",
    "attn_k",
    "attn_v",
    "ssm_f",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
"""Projections whose input can be coded, by the stem of their tensor's name in the GGUF. `ssm_f` is the gate
of a GLA layer: the merged `ssm_f_b`, or `ssm_f_a`, the first of a low-rank pair."""

INPUTS = (("attn_q", "attn_k", "attn_v", "ssm_f"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""The projections of a layer, grouped by shared input."""

DEFAULT_K = 3.0

SPIKE_KEYS = f"{ARCH}.spike."
OVERRIDE_KEY = SPIKE_KEYS + "override"
"""Never in a file: passed to the engine at load time; 0 disables spikes, another number replaces every k."""


def require_positive(value: float, item: str, hint: str) -> None:
    """Refuse a value that is not a positive, finite number.

    Args:
        value: value to check.
        item: name of the value, for the message.
        hint: hint of the message.

    Raises:
        SpikeError: the value is not positive and finite.
    """
    if not (math.isfinite(value) and value > 0):
        raise SpikeError("must be a positive number", item=item, found=value, hint=hint)


def require_k(k: float, item: str) -> None:
    """`require_positive` for a k."""
    require_positive(k, item, "the release uses 3")


@dataclass(frozen=True)
class CodedInput:
    """A coded input of a layer: the projections that share it, its counts and its k."""

    layer: int
    projections: tuple[str, ...]


@dataclass(frozen=True)
class SpikePlan:
    """The spike plan of a model.

    Attributes:
        projections: coded projections, out of `PROJECTIONS`.
        k: default k of the coded projections.
        layer_k: k by layer and projection, [n_layer][len(projections)], 0: not coded; None: `k` for all.
        query_k: k for q per head in SWA layers, after the rotary embedding; 0: not coded.
        kv_rounding: round k and v in SWA layers to symmetric INT8 per token and head.
    """

    projections: tuple[str, ...] = PROJECTIONS
    k: float = DEFAULT_K
    layer_k: tuple[tuple[float, ...], ...] | None = None
    query_k: float = 0.0
    kv_rounding: bool = False

    def __post_init__(self) -> None:
        """Raises SpikeError: a projection is unknown or repeated, there is none, or a k is not positive."""
        unknown = [name for name in self.projections if name not in PROJECTIONS]
        if unknown:
            raise SpikeError(
                "no such projection", found=repr(unknown[0]), expected=f"one of {' '.join(PROJECTIONS)}"
            )
        if not self.projections or len(set(self.projections)) != len(self.projections):
            raise SpikeError(
                "each projection must be listed once",
                item="projections",
                found=" ".join(self.projections) or "none",
            )
        require_k(self.k, "k")
        if self.query_k != 0:
            require_k(self.query_k, "query_k")
        for layer, row in enumerate(self.layer_k or ()):
            if len(row) != len(self.projections):
                raise SpikeError(
                    "needs one k per projection",
                    item=f"layer_k of layer {layer}",
                    found=len(row),
                    expected=len(self.projections),
                )
            for name, k in zip(self.projections, row, strict=True):
                if k != 0:
                    require_k(k, f"k of {name} in layer {layer}")

    def k_of(self, layer: int, projection: str) -> float:
        """The k of a projection; 0 if it is not coded."""
        if projection not in self.projections:
            return 0.0
        if self.layer_k is None:
            return self.k
        return self.layer_k[layer][self.projections.index(projection)]

    def layer_ks(self, layer: int, *, recurrent: bool) -> dict[str, float]:
        """The k of every coded projection of a layer; only recurrent layers have a gate."""
        ks = {name: self.k_of(layer, name) for name in PROJECTIONS if recurrent or name != "ssm_f"}
        return {name: k for name, k in ks.items() if k}

    def coded_inputs(self, recurrent: Sequence[bool]) -> tuple[CodedInput, ...]:
        """The coded inputs of a model, by layer.

        Args:
            recurrent: [n_layer], True for GLA layers.
        """
        return tuple(
            CodedInput(layer, names)
            for layer, gla in enumerate(recurrent)
            for names in coded_together(self.layer_ks(layer, recurrent=gla))
        )

    def overridden(self, k: float) -> SpikePlan:
        """The plan with every nonzero k replaced by `k`."""
        layer_k = self.layer_k and tuple(tuple(k if own else 0.0 for own in row) for row in self.layer_k)
        return replace(self, k=k, layer_k=layer_k, query_k=k if self.query_k else 0.0)

    def with_k(self, layer: int, projection: str, k: float, n_layer: int) -> SpikePlan:
        """The plan with another k for one projection of one layer; 0: not coded."""
        rows = [[self.k_of(at, name) for name in self.projections] for at in range(n_layer)]
        rows[layer][self.projections.index(projection)] = k
        return replace(self, layer_k=tuple(map(tuple, rows)))

    def keys(self) -> dict[str, Any]:
        """GGUF keys and values: list of str, float, bool and list of float, row-major [n_layer,
        n_projections]."""
        values: dict[str, Any] = {
            "projections": list(self.projections),
            "k": float(self.k),
            "query_k": float(self.query_k),
            "kv_rounding": self.kv_rounding,
        }
        if self.layer_k is not None:
            values["layer_k"] = [float(k) for row in self.layer_k for k in row]
        return {SPIKE_KEYS + key: value for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], path: Path | None = None) -> SpikePlan | None:
        """The plan in a GGUF's metadata; None without spike keys.

        Raises:
            GgufError: a key is unknown or missing, or a value has the wrong type or length or is invalid.
        """
        found = {key: value for key, value in metadata.items() if key.startswith(SPIKE_KEYS)}
        if not found:
            return None
        readers = {
            "projections": _strings,
            "k": _number,
            "query_k": _number,
            "kv_rounding": _boolean,
            "layer_k": _numbers,
        }
        values: dict[str, Any] = {}
        for key, value in found.items():
            reader = readers.get(key.removeprefix(SPIKE_KEYS))
            if reader is None:
                raise GgufError("is not a known spike key", path=path, item=key, expected=", ".join(readers))
            try:
                values[key.removeprefix(SPIKE_KEYS)] = reader(value)
            except (TypeError, ValueError) as error:
                raise GgufError("has the wrong type", path=path, item=key, expected=str(error)) from None
        for name in ("projections", "k"):
            if name not in values:
                raise GgufError("is missing", path=path, item=SPIKE_KEYS + name)
        if "layer_k" in values:
            values["layer_k"] = _rows(values, metadata.get(f"{ARCH}.block_count"), path)
        try:
            return cls(**values)
        except SpikeError as error:
            item = SPIKE_KEYS + (error.item or "projections")
            raise GgufError(error.message, path=path, item=item, found=error.found) from None


RELEASED_PLAN = SpikePlan(PROJECTIONS[:-1], query_k=DEFAULT_K, kv_rounding=True)
"""The plan of the public W8ASpike release: all except `ffn_down`, whose weight it does not round either."""


def coded_together(ks: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    """The coded inputs of a layer, each as the projections that share it and its k, in their order.

    Args:
        ks: k by projection of the layer; 0: not coded.
    """
    found = []
    for shared in INPUTS:
        names = [name for name in shared if ks.get(name)]
        for k in dict.fromkeys(ks[name] for name in names):
            found.append(tuple(name for name in names if ks[name] == k))
    return tuple(found)


def _rows(values: dict[str, Any], layers: object, path: Path | None) -> tuple[tuple[float, ...], ...]:
    width, flat = len(values["projections"]), values["layer_k"]
    if not isinstance(layers, int) or len(flat) != layers * width:
        raise GgufError(
            "has the wrong length",
            path=path,
            item=SPIKE_KEYS + "layer_k",
            found=len(flat),
            expected=f"block_count * {width} projections",
        )
    return tuple(tuple(flat[at : at + width]) for at in range(0, len(flat), width))


def _sequence(value: object) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        return list(value)
    if not isinstance(value, (list, tuple)):
        raise TypeError("an array")
    return value


def _strings(value: object) -> tuple[str, ...]:
    items = _sequence(value)
    if not all(isinstance(item, str) for item in items):
        raise TypeError("an array of strings")
    return tuple(items)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError("a number")
    return float(value)


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(_number(item) for item in _sequence(value))


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("a boolean")
    return value
