"""What a benchmark will measure, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sb_edge.arch.config import ARCH
from sb_edge.bench.rows.row import Fill, RowKey
from sb_edge.bench.speed.fill import CHUNK
from sb_edge.engine.machine import Machine
from sb_edge.gguf.reader import GgufHeader, padded, read_header
from sb_edge.memory.check import FLOAT_TYPES
from sb_edge.memory.forecast import DEFAULT_UBATCH, FLASH_ATTN, FlashChoice
from sb_edge.util.errors import SbEdgeError
from sb_edge.util.hashes import sha256_of, sha256_of_bytes

AUTO_REAL_DEPTH = 4096
"""`fill="auto"` prefills a Transformer for real up to here: minutes beyond it, hours at the deepest."""

FIT_BEYOND = 262144
"""A Transformer's prompt speed is measured up to here: the cache of a 1B model takes 8 GiB then."""

FIT_SHARES = (0, 0.25, 0.5, 1)
"""Depths that a fit over depth is made of where not as many are asked for, as shares of the deepest."""

CONTEXT_PADDING = 256
"""The engine rounds a context up to a multiple of this."""

FillChoice = Literal["auto", "real", "synthetic"]


@dataclass(frozen=True)
class BenchModel:
    """A GGUF, the name that it gets in the results, and its flash attention if not that of the settings."""

    name: str
    path: Path
    flash_attn: FlashChoice | None = None


@dataclass(frozen=True)
class Subject:
    """A model as it is measured: as `BenchModel`, with its header and the SHA-256 over its files in order."""

    name: str
    path: Path
    header: GgufHeader
    sha256: str
    flash_attn: FlashChoice | None = None

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
class BenchSettings:
    """How to measure; settings are the same for all models of a run, but for a flash attention of their own.

    Args:
        depths: tokens in the context before the measurement starts.
        n_threads: threads of the engine and of the bandwidth measurement.
        n_prompt: tokens of the prompt timed in a repetition, 0 when decoding is timed.
        n_gen: tokens decoded in a repetition, 0 when a prompt is timed.
        repetitions: how often, each starting at the same depth.
        cache_types: pairs of ggml types for keys and values.
        flash_attn: "auto", "on" or "off".
        fill: how a Transformer baseline is brought to its depth; SpikingBrain always prefills for real.
        n_ubatch: tokens of a batch while prefilling.
        n_warmup: tokens decoded uncounted before the first repetition; the first of them faults in the
            weights and applies pending shifts.

    Raises:
        SbEdgeError: a value out of range, or quantized values without flash attention, which llama.cpp
        refuses.
    """

    depths: tuple[int, ...]
    n_threads: int
    n_prompt: int = 0
    n_gen: int = 0
    repetitions: int = 5
    cache_types: tuple[tuple[str, str], ...] = (("f16", "f16"),)
    flash_attn: FlashChoice = "auto"
    fill: FillChoice = "auto"
    n_ubatch: int = DEFAULT_UBATCH
    n_warmup: int = 1

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 0:
            raise SbEdgeError("depths must be zero or more tokens", found=list(self.depths))
        if (self.n_prompt > 0) == (self.n_gen > 0):
            raise SbEdgeError(
                "either a prompt or decoding is timed", found=f"n_prompt {self.n_prompt}, n_gen {self.n_gen}"
            )
        for name in ("n_threads", "repetitions", "n_ubatch", "n_warmup"):
            if getattr(self, name) < 1:
                raise SbEdgeError(f"{name} must be at least 1", found=getattr(self, name))
        if self.flash_attn == "off" and any(type_v not in FLOAT_TYPES for _, type_v in self.cache_types):
            raise SbEdgeError(
                "a quantized cache of values needs flash attention",
                hint="use --flash-attn auto, or --type-v f16",
            )

    @property
    def n_timed(self) -> int:
        """Tokens that a repetition evaluates."""
        return self.n_prompt or self.n_gen

    def depths_of(self, subject: Subject) -> list[int]:
        """The depths to measure `subject` at, ascending."""
        return sorted(set(self.depths))

    def fill_of(self, subject: Subject, n_depth: int) -> Fill:
        """How `subject` is brought to `n_depth`."""
        return choose_fill(subject, n_depth, self.fill)


@dataclass(frozen=True)
class DecodeSettings(BenchSettings):
    """Decoding token by token."""

    n_gen: int = 32


@dataclass(frozen=True)
class PrefillSettings(BenchSettings):
    """Evaluating a prompt, `n_prompt` tokens of it timed at each depth.

    Args:
        fit_beyond: a Transformer is measured up to this depth; what it would do beyond is fitted.
    """

    n_prompt: int = 512
    repetitions: int = 3
    fit_beyond: int = FIT_BEYOND

    def depths_of(self, subject: Subject) -> list[int]:
        """The depths asked for, and those that a fit of the time to the first token needs besides."""
        depths = super().depths_of(subject)
        unaffordable = [depth for depth in depths if self.fill_of(subject, depth) != "real"]
        if not unaffordable:
            return depths
        deepest = min(unaffordable[0], self.fit_beyond)
        if sum(depth <= deepest for depth in depths) >= len(FIT_SHARES):
            return depths
        return sorted({*depths, *(int(deepest * share) for share in FIT_SHARES)})

    def fill_of(self, subject: Subject, n_depth: int) -> Fill:
        """As for decoding, but "fitted" for a Transformer beyond `fit_beyond`."""
        fill = super().fill_of(subject, n_depth)
        return "fitted" if fill == "synthetic" and n_depth > self.fit_beyond else fill


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
    settings: BenchSettings

    @property
    def label(self) -> str:
        """As llama-bench prints it, for instance `tg128 @ d65536` or `pp512 @ d4096`."""
        test = f"pp{self.settings.n_prompt}" if self.settings.n_prompt else f"tg{self.settings.n_gen}"
        return test + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def series(self) -> tuple[str, str, str]:
        """The cases whose contexts continue one another: same weights, same cache types."""
        return self.subject.sha256, self.type_k, self.type_v

    @property
    def n_ctx(self) -> int:
        """The context that it needs; a synthetic fill may overshoot the depth by a chunk before it is cut."""
        needed = max(self.settings.n_timed, self.settings.n_warmup) + 1
        room = max(needed, CHUNK if self.fill == "synthetic" else 0)
        return padded(self.n_depth + room, CONTEXT_PADDING)

    def key(self, machine: Machine) -> RowKey:
        """The identity of its row on `machine`."""
        return RowKey(
            model_sha256=self.subject.sha256,
            n_ubatch=self.settings.n_ubatch,
            n_threads=self.settings.n_threads,
            type_k=self.type_k,
            type_v=self.type_v,
            flash_attn=FLASH_ATTN[self.settings.flash_attn],
            n_prompt=self.settings.n_prompt,
            n_gen=self.settings.n_gen,
            n_depth=self.n_depth,
            repetitions=self.settings.repetitions,
            n_warmup=self.settings.n_warmup,
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
    digest = sha256_of_bytes(*(bytes.fromhex(sha256_of(file)) for file in header.files))
    return Subject(model.name, model.path, header, digest, model.flash_attn)


def choose_fill(subject: Subject, n_depth: int, choice: FillChoice) -> Fill:
    """How `subject` is brought to `n_depth`: always for real if it is not plain full attention."""
    if subject.is_spikingbrain or not subject.can_roll_back or n_depth == 0 or choice == "real":
        return "real"
    if choice == "auto" and n_depth <= AUTO_REAL_DEPTH:
        return "real"
    return "synthetic"


def make_plan(subjects: Sequence[Subject], settings: BenchSettings) -> list[Case]:
    """All cases, shallow to deep; at each depth the models take turns, so that noise hits all of them."""
    wanted = [(subject, settings.depths_of(subject)) for subject in subjects]
    return [
        Case(
            subject,
            depth,
            type_k,
            type_v,
            fill=settings.fill_of(subject, depth),
            is_continued=depth > 0
            and any(deeper > depth and settings.fill_of(subject, deeper) == "real" for deeper in depths),
            settings=replace(settings, flash_attn=subject.flash_attn or settings.flash_attn),
        )
        for depth in sorted({depth for _, depths in wanted for depth in depths})
        for subject, depths in wanted
        if depth in depths
        for type_k, type_v in dict.fromkeys(settings.cache_types)
    ]
