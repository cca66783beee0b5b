"""What a decode benchmark will measure, in which order, and whether the machine's memory is enough for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sb_edge.bench.fill import CHUNK
from sb_edge.bench.machine import Machine
from sb_edge.bench.results import Fill, RowKey
from sb_edge.config import ARCH
from sb_edge.errors import SbEdgeError
from sb_edge.gguf_reader import GgufHeader, read_header
from sb_edge.memory import MemoryForecast, forecast
from sb_edge.memory_check import FLOAT_TYPES, SMALLER_TYPE, Alternative, Room, refuse_shortage

AUTO_REAL_DEPTH = 4096
"""`fill="auto"` prefills a Transformer for real up to here: minutes beyond it, hours at the deepest."""

CONTEXT_PADDING = 256
"""The engine rounds a context up to a multiple of this."""

COPIES = 2
"""Of a context that is kept or put back, at one time."""

FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
"""llama-bench's numbers for its `flash_attn` field."""

FillChoice = Literal["auto", "real", "synthetic"]


@dataclass(frozen=True)
class BenchModel:
    """A GGUF and the name that it gets in the results."""

    name: str
    path: Path


@dataclass(frozen=True)
class DecodeSettings:
    """How to measure; all settings are the same for all models of a run.

    Args:
        depths: tokens in the context before decoding starts.
        n_threads: threads of the engine and of the bandwidth measurement.
        n_gen: tokens decoded a repetition.
        repetitions: how often, each starting at the same depth.
        cache_types: pairs of ggml types for keys and values.
        flash_attn: "auto", "on" or "off".
        fill: how a Transformer baseline is brought to its depth; SpikingBrain always prefills for real.
        n_ubatch: tokens of a batch while prefilling.

    Raises:
        SbEdgeError: a value out of range, or quantized values without flash attention, which llama.cpp
        refuses.
    """

    depths: tuple[int, ...]
    n_threads: int
    n_gen: int = 32
    repetitions: int = 5
    cache_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    flash_attn: Literal["auto", "on", "off"] = "auto"
    fill: FillChoice = "auto"
    n_ubatch: int = 512

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 0:
            raise SbEdgeError("depths must be zero or more tokens", found=list(self.depths))
        for name in ("n_threads", "n_gen", "repetitions", "n_ubatch"):
            if getattr(self, name) < 1:
                raise SbEdgeError(f"{name} must be at least 1", found=getattr(self, name))
        if self.flash_attn == "off" and any(type_v not in FLOAT_TYPES for _, type_v in self.cache_types):
            raise SbEdgeError(
                "a quantized cache of values needs flash attention",
                hint="use --flash-attn auto, or --type-v f16",
            )


@dataclass(frozen=True)
class Subject:
    """A model as it is measured: name, file, header, SHA-256 over its files in order."""

    name: str
    path: Path
    header: GgufHeader
    sha256: str

    @property
    def is_spikingbrain(self) -> bool:
        return self.header.arch == ARCH

    @property
    def can_roll_back(self) -> bool:
        """Whether its context can be cut back to an earlier position: plain full attention only."""
        keys = (
            "attention.recurrent_layers",
            "attention.sliding_window",
            "shortconv.l_cache",
            "ssm.state_size",
            "wkv.head_size",
        )
        return not any(np.any(self.header.metadata.get(f"{self.header.arch}.{key}", 0)) for key in keys)


@dataclass(frozen=True)
class Case:
    """One measurement to make."""

    subject: Subject
    n_depth: int
    type_k: str
    type_v: str
    fill: Fill
    is_continued: bool
    """Whether a deeper case of the same series starts from this one's context."""
    settings: DecodeSettings

    @property
    def label(self) -> str:
        """As llama-bench prints it, for instance `tg128 @ d65536`."""
        return f"tg{self.settings.n_gen}" + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def series(self) -> tuple[str, str, str]:
        """The cases whose contexts continue one another: same weights, same cache types."""
        return self.subject.sha256, self.type_k, self.type_v

    @property
    def n_ctx(self) -> int:
        """The context that it needs; a synthetic fill may overshoot the depth by a chunk before it is cut."""
        room = max(self.settings.n_gen + 1, CHUNK if self.fill == "synthetic" else 0)
        return -(-(self.n_depth + room) // CONTEXT_PADDING) * CONTEXT_PADDING

    def key(self, machine: Machine) -> RowKey:
        """The identity of its row on `machine`."""
        return RowKey(
            model_sha256=self.subject.sha256,
            n_ubatch=self.settings.n_ubatch,
            n_threads=self.settings.n_threads,
            type_k=self.type_k,
            type_v=self.type_v,
            flash_attn=FLASH_ATTN[self.settings.flash_attn],
            n_gen=self.settings.n_gen,
            n_depth=self.n_depth,
            repetitions=self.settings.repetitions,
            fill=self.fill,
            machine_id=machine.id,
            engine_key=machine.engine_key,
        )


def examine(model: BenchModel) -> Subject:
    """Read a model's header and hash its content.

    Raises:
        GgufError: the file is missing, truncated or corrupt.
    """
    header = read_header(model.path)
    digest = hashlib.sha256()
    for file in header.files:
        with Path(file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return Subject(model.name, model.path, header, digest.hexdigest())


def choose_fill(subject: Subject, n_depth: int, choice: FillChoice) -> Fill:
    """How `subject` is brought to `n_depth`: always for real if it is not plain full attention."""
    if subject.is_spikingbrain or not subject.can_roll_back or n_depth == 0 or choice == "real":
        return "real"
    if choice == "auto" and n_depth <= AUTO_REAL_DEPTH:
        return "real"
    return "synthetic"


def make_plan(subjects: Sequence[Subject], settings: DecodeSettings) -> list[Case]:
    """All cases, shallow to deep; at each depth the models take turns, so that noise hits all of them."""
    depths = sorted(set(settings.depths))
    return [
        Case(
            subject,
            depth,
            type_k,
            type_v,
            fill=choose_fill(subject, depth, settings.fill),
            is_continued=depth > 0
            and choose_fill(subject, deeper, settings.fill) == "real"
            and deeper > depth,
            settings=settings,
        )
        for depth, deeper in zip(depths, [*depths[1:], depths[-1]], strict=True)
        for subject in subjects
        for type_k, type_v in dict.fromkeys(settings.cache_types)
    ]


def needed(case: Case) -> MemoryForecast:
    """Memory that the case takes at its peak, the method's own copies included."""
    expected = _forecast(case)
    return replace(expected, extra=_snapshot_bytes(case, expected) + _shift_bytes(case))


def require_memory(cases: Sequence[Case], room: Room | None = None) -> None:
    """Refuse before anything starts if one of the cases will not fit; only one model is loaded at a time.

    Args:
        cases: those still to be measured.
        room: what there is; None: `Room.now()`.

    Raises:
        OutOfMemoryForecast: what is needed, what there is, and what would fit instead.
    """
    room = room or Room.now()
    for case in cases:
        refuse_shortage(
            needed(case),
            room,
            "",
            path=case.subject.path,
            item=f"{case.label}, {case.type_k}/{case.type_v} cache",
            alternatives=(_smaller_types(case), _shallower(case)),
        )


def _forecast(case: Case) -> MemoryForecast:
    return forecast(
        case.subject.header,
        case.n_ctx,
        type_k=case.type_k,
        type_v=case.type_v,
        n_ubatch=case.settings.n_ubatch,
        flash_attn=_uses_flash_attention(case),
    )


def _uses_flash_attention(case: Case) -> bool:
    """The session turns "auto" into "off" for a float32 cache, which flash attention would round."""
    choice = case.settings.flash_attn
    return choice == "on" or (choice == "auto" and "f32" not in (case.type_k, case.type_v))


def _snapshot_bytes(case: Case, expected: MemoryForecast) -> int:
    """Copies of the context: for the next depth, or for each repetition where it cannot be cut back.

    Python holds one, and a second while the engine writes or reads it.
    """
    needs_copy = case.is_continued or not case.subject.can_roll_back
    return COPIES * (expected.kv + expected.state) if needs_copy and case.n_depth else 0


def _shift_bytes(case: Case) -> int:
    """Shifting the positions of quantized keys makes the engine unpack one layer of them to float32."""
    if case.fill == "real" or case.type_k in FLOAT_TYPES:
        return 0
    unpacked = _forecast(replace(case, type_k="f32", type_v="f32"))
    return unpacked.kv // case.subject.header.integer("block_count")


def _smaller_types(case: Case) -> Iterator[Alternative]:
    if case.type_k in FLOAT_TYPES and case.type_v in FLOAT_TYPES:
        option = f"--type-k {SMALLER_TYPE} --type-v {SMALLER_TYPE}"
        yield option, needed(replace(case, type_k=SMALLER_TYPE, type_v=SMALLER_TYPE))


def _shallower(case: Case) -> Iterator[Alternative]:
    depth = case.n_depth
    while depth:
        depth //= 2
        yield f"--depths up to {depth}", needed(replace(case, n_depth=depth))
