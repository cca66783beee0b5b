"""Spikes as the engine computes them: its counters, and the counts themselves."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch.spike_plan import PROJECTIONS, CodedInput, SpikePlan, require_k
from sb_edge.runtime.binding import cpu_function, ggml_base, typed
from sb_edge.runtime.model import Model
from sb_edge.runtime.session import Session
from sb_edge.util.errors import InferenceError

BINS = 1024
"""Bins of a histogram of |s|; the last holds everything larger, too."""

_SYNTHETIC = "synthetic"
_NODE = "spike_"
_HEADER = np.dtype(
    [
        ("threshold", "<f4"),
        ("n_planes", "<i4"),
        ("largest", "<i4"),
        ("n_bursts", "<i4"),
        ("reserved", "<i4", 12),
    ]
)
_BLOCK, _DIGITS, _BASE = 32, 4, 255  # sb-spike.h


@dataclass(frozen=True)
class SiteCounts:
    """What the engine counted of one coded input, all its tokens and channels together.

    s is a count; T, the number of virtual time steps, is that of the largest |s| of each token (section 4.1's
    table of codings: `sb_edge.arch.coding.steps`).

    Attributes:
        layer: -1 for synthetic rows.
        projections: that read these counts.
        k: k of the threshold.
        channels, tokens: Shape of the coded input.
        histogram: int64 [BINS], entries with each |s|.
        largest: |s|.
        negative: entries with s < 0.
        bursts: entries with |s| > 127.
        threshold_sum: sum of Vth over the tokens.
        unary_spikes: sum of |s|: binary and ternary coding.
        bit_spikes: sum of popcount(|s|): bitwise coding, with and without sign.
        twos_complement_spikes: sum of popcount(s mod 2^T).
        unary_steps, bit_steps, twos_complement_steps: sums of T over the tokens; times `channels`: slots.
        window_slots: sum of 3 * max(1, ceil(bits(|s|) / 3)), the slots of windows of three time steps.
    """

    layer: int
    projections: tuple[str, ...]
    k: float
    channels: int
    tokens: int
    histogram: NDArray[np.int64]
    largest: int
    negative: int
    bursts: int
    threshold_sum: float
    unary_spikes: int
    bit_spikes: int
    twos_complement_spikes: int
    unary_steps: int
    bit_steps: int
    twos_complement_steps: int
    window_slots: int


@dataclass(frozen=True)
class RecordedCounts:
    """The counts of one projection's input.

    Attributes:
        counts: int32 [T, n].
        thresholds: float32 [T]; NaN for a row that was not finite.
        k: k of the threshold.
    """

    counts: NDArray[np.int32]
    thresholds: NDArray[np.float32]
    k: float


_C_TYPES: dict[str, Any] = {"int": ctypes.c_int64, "float": ctypes.c_double}


class _Site(ctypes.Structure):
    """sb_spike_site of ggml-sb.h; from `largest` on its fields are those of `SiteCounts`."""

    _fields_ = [
        ("name", ctypes.c_char * 64),
        ("k", ctypes.c_float),
        ("channels", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("histogram", ctypes.c_int64 * BINS),
        *((field.name, _C_TYPES[str(field.type)]) for field in fields(SiteCounts)[6:]),
    ]


class SpikeCounters:
    """The engine's counters since they were switched on."""

    def __init__(self, coded: Iterable[CodedInput]) -> None:
        self._projections = {(site.layer, site.projections[0]): site.projections for site in coded}

    def sites(self) -> list[SiteCounts]:
        """Every coded input that has been computed, by layer and then in `PROJECTIONS` order."""
        size, get = _function("sb_spike_counters_size"), _function("sb_spike_counters_get")
        sites = []
        for index in range(size()):
            raw = _Site()
            get(index, ctypes.byref(raw))
            sites.append(self._describe(raw))
        return sorted(sites, key=lambda site: (site.layer, _order(site.projections[0])))

    def _describe(self, raw: _Site) -> SiteCounts:
        name = raw.name.decode()
        layer, first = _parse(name) if name != _SYNTHETIC else (-1, name)
        numbers = {field.name: getattr(raw, field.name) for field in fields(SiteCounts)[2:]}
        numbers["histogram"] = np.array(raw.histogram, dtype=np.int64)
        return SiteCounts(layer, self._projections.get((layer, first), (first,)), **numbers)


@contextmanager
def count_spikes(model: Model) -> Iterator[SpikeCounters]:
    """Switch the engine's counters on. They are one set for the process: count one model at a time.

    Raises:
        InferenceError: the model does not spike.
    """
    plan = _require_spikes(model)
    with _counting():
        yield SpikeCounters(plan.coded_inputs(model.recurrent_layers))


def count_synthetic(x: NDArray[np.float32], k: float) -> SiteCounts:
    """The engine's counters on given rows.

    Args:
        x: [T, n].
        k: k of the threshold.

    Raises:
        SpikeError: k is not a positive number.
    """
    with _counting():
        code_rows(x, k)
        return SpikeCounters(()).sites()[0]


def code_rows(x: NDArray[np.float32], k: float) -> RecordedCounts:
    """The operator's own coding of given rows.

    Args:
        x: [T, n].
        k: k of the threshold.

    Raises:
        SpikeError: k is not a positive number.
    """
    require_k(k, "k")
    rows = np.ascontiguousarray(x, dtype=np.float32)
    return _unpack(coded_bytes(rows, k), rows.shape[1], k)


def coded_bytes(x: NDArray[np.float32], k: float) -> NDArray[np.uint8]:
    """Rows in the engine's coded form (sb-spike.h), uint8 [T, row size]."""
    coded = np.zeros((x.shape[0], _row_size(x.shape[1])), dtype=np.uint8)
    _function("sb_spike_code_rows")(
        x.ctypes.data, x.shape[1], x.shape[0], k, coded.ctypes.data, _SYNTHETIC.encode()
    )
    return coded


def accumulate(
    ggml_type: int, weights: NDArray[np.uint8], coded: NDArray[np.uint8], n: int, *, unpacked: bool
) -> NDArray[np.int64]:
    """The integer accumulators of the product's kernel: one for each block of 32 channels.

    Args:
        ggml_type: ggml's number of Q4_0 or Q8_0.
        weights: one row of n weights, as it stands in a GGUF.
        coded: one row of `coded_bytes`.
        n: channels, a multiple of 32.
        unpacked: by the kernel for many tokens, which unpacks the weights first, or by that for few.

    Raises:
        InferenceError: there is no integer kernel for this type.
    """
    sums = np.zeros(-(-n // _BLOCK), dtype=np.int64)
    done = _function("sb_spike_accumulate")(
        ggml_type, unpacked, n, weights.ctypes.data, coded.ctypes.data, sums.ctypes.data
    )
    if not done:
        raise InferenceError("no integer kernel for this type of weights", found=ggml_type)
    return sums


class CountRecorder:
    """The counts of what a session evaluates that has its `on_tensor` and `tensor_filter`.

    Args:
        model: one that spikes.
        layers, projections: None: all.

    Raises:
        InferenceError: the model does not spike.
    """

    tensor_filter = _NODE + r"\w+-\d+"

    def __init__(
        self, model: Model, layers: Sequence[int] | None = None, projections: Sequence[str] | None = None
    ) -> None:
        self._plan = _require_spikes(model)
        self._widths = model.spike_widths
        self._projections = PROJECTIONS if projections is None else projections
        self._sites = {
            f"{_NODE}{site.projections[0]}-{site.layer}": site
            for site in self._plan.coded_inputs(model.recurrent_layers)
            if (layers is None or site.layer in layers) and set(site.projections) & set(self._projections)
        }
        self._rows: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)

    def on_tensor(self, name: str, values: NDArray[np.int8]) -> None:
        """Keep the coded rows, int8 [T, row size], of the recorded inputs; ignore everything else."""
        if name in self._sites:
            self._rows[name].append(values.view(np.uint8))

    def counts(self) -> dict[tuple[int, str], RecordedCounts]:
        """By layer and projection; those that share an input share the arrays."""
        recorded = {}
        for node, site in self._sites.items():
            first = site.projections[0]
            k = self._plan.k_of(site.layer, first)
            counts = _unpack(np.concatenate(self._rows[node]), self._widths[first], k)
            recorded.update(
                {(site.layer, name): counts for name in site.projections if name in self._projections}
            )
        return recorded


def record_counts(
    model: Model,
    tokens: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    projections: Sequence[str] | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    n_threads: int | None = None,
) -> dict[tuple[int, str], RecordedCounts]:
    """The counts of a prompt, of every coded projection; those that share an input share the arrays.

    Args:
        model: one that spikes.
        tokens: the prompt, computed from an empty context.
        layers, projections: None: all.
        type_k, type_v: the KV cache's types.
        n_threads: None: as `default_threads`.

    Raises:
        InferenceError: the model does not spike, or the prompt is not what it takes.
    """
    recorder = CountRecorder(model, layers, projections)
    with Session(
        model,
        n_ctx=len(tokens),
        n_threads=n_threads,
        type_k=type_k,
        type_v=type_v,
        on_tensor=recorder.on_tensor,
        tensor_filter=recorder.tensor_filter,
    ) as session:
        session.evaluate(tokens, all_logits=True)
    return recorder.counts()


def _unpack(coded: NDArray[np.uint8], n: int, k: float) -> RecordedCounts:
    header = np.ascontiguousarray(coded[:, : _HEADER.itemsize]).view(_HEADER)[:, 0]
    blocks = -(-n // _BLOCK)
    planes_end = _HEADER.itemsize + _DIGITS * blocks * _BLOCK
    bursts_start = planes_end + blocks * _BLOCK  # after an int32 for every four channels
    planes = np.ascontiguousarray(coded[:, _HEADER.itemsize : planes_end]).view(np.int8)
    planes = planes.reshape(len(coded), _DIGITS, blocks, _BLOCK)
    counts = planes[:, 0].astype(np.int32)
    for row in np.flatnonzero(header["n_bursts"]):
        bursts = coded[row, bursts_start:].view("<u2")[: header["n_bursts"][row]]
        for digit in range(1, header["n_planes"][row]):
            counts[row, bursts] += _BASE**digit * planes[row, digit, bursts].astype(np.int32)
    return RecordedCounts(counts.reshape(len(coded), -1)[:, :n].copy(), header["threshold"].copy(), k)


def _require_spikes(model: Model) -> SpikePlan:
    if model.spike_plan is None:
        raise InferenceError("does not spike", path=model.path, hint="give it a k, for example --spike-k 3")
    return model.spike_plan


@contextmanager
def _counting() -> Iterator[None]:
    size = _function("sb_spike_site_size")()
    if size != ctypes.sizeof(_Site):
        raise InferenceError(
            "the engine's spike counters have another layout",
            found=f"{size} bytes",
            expected=f"{ctypes.sizeof(_Site)} bytes",
            hint="rebuild the engine: `sb-edge engine build`",
        )
    _function("sb_spike_counters_reset")()
    _function("sb_spike_counters_enable")(True)
    try:
        yield
    finally:
        _function("sb_spike_counters_enable")(False)


def _parse(name: str) -> tuple[int, str]:
    """The layer and the first projection in a node's name, `spike_attn_q-3`."""
    projection, _, layer = name.removeprefix(_NODE).rpartition("-")
    return int(layer), projection


def _order(projection: str) -> int:
    return PROJECTIONS.index(projection) if projection in PROJECTIONS else len(PROJECTIONS)


def _row_size(n: int) -> int:
    return int(typed(ggml_base(), "sb_spike_row_size", ctypes.c_size_t, ctypes.c_int64)(n))


_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "sb_spike_code_rows": (None, _POINTER, _INT64, _INT64, ctypes.c_float, _POINTER, ctypes.c_char_p),
    "sb_spike_accumulate": (ctypes.c_bool, ctypes.c_int, ctypes.c_bool, _INT64, _POINTER, _POINTER, _POINTER),
    "sb_spike_counters_enable": (None, ctypes.c_bool),
    "sb_spike_counters_reset": (None,),
    "sb_spike_counters_size": (ctypes.c_size_t,),
    "sb_spike_counters_get": (ctypes.c_bool, ctypes.c_size_t, _POINTER),
    "sb_spike_site_size": (ctypes.c_size_t,),
}
"""Types of results and arguments."""


@cache
def _function(name: str) -> Any:
    """A function of the CPU backend; in a portable engine, of the variant that was loaded."""
    return cpu_function(name, *_SIGNATURES[name])
