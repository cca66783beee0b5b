"""The cases that a benchmark measures, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sb_edge.arch import ARCH
from sb_edge.arch.model_check import read_model
from sb_edge.bench.rows.row import Fill, RowKey
from sb_edge.bench.speed.context_fill import CHUNK
from sb_edge.engine.machine import Machine
from sb_edge.gguf.reader import GgufHeader, padded
from sb_edge.memory.check import FLOAT_TYPES
from sb_edge.memory.forecast import DEFAULT_UBATCH, FLASH_ATTN, FlashChoice
from sb_edge.util.errors import SbEdgeError
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.user_cache import remembered_sha256

AUTO_REAL_DEPTH = 4096
"""Maximum depth of a real prefill of a Transformer with `fill="auto"`; deeper ones take up to hours."""

FIT_BEYOND = 262144
"""Maximum depth at which a Transformer's prompt speed is measured; a 1B model's cache takes 8 GiB there."""

FIT_SHARES = (0, 0.25, 0.5, 1)
"""Additional depths for a fit over depth, as shares of the deepest."""

CONTEXT_PADDING = 256
"""The engine rounds context sizes up to a multiple of this."""

FillChoice = Literal["auto", "real", "synthetic"]


@dataclass(frozen=True)
class BenchModel:
    """A GGUF, its name in the results, and its flash attention; None: that of the settings."""

    name: str
    path: Path
    flash_attn: FlashChoice | None = None


@dataclass(frozen=True)
class Subject:
    """A `BenchModel` with its header and the SHA-256 over its files in order."""

    name: str
    path: Path
    header: GgufHeader
    sha256: str
    flash_attn: FlashChoice | None = None

    @property
    def is_spikingbrain(self) -> bool:
        """Whether the model has this project's architecture."""
        return self.header.arch == ARCH

    @property
    def can_roll_back(self) -> bool:
        """Whether its context can be truncated: full attention only."""
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
    """Settings of a run, the same for all models except for their own flash attention.

    Args:
        depths: tokens in the context before the timed ones.
        n_threads: threads of the engine and of the bandwidth measurement.
        n_prompt: prompt tokens per repetition; 0: decoding is timed.
        n_gen: decoded tokens per repetition; 0: a prompt is timed.
        repetitions: number of repetitions, all at the same depth.
        cache_types: pairs of ggml types for keys and values.
        flash_attn: "auto", "on" or "off".
        fill: context fill of a Transformer baseline; SpikingBrain always has a real prefill.
        n_ubatch: tokens per batch of a prefill.
        n_warmup: tokens decoded before the first repetition; they page in the weights and apply pending
            shifts.

    Raises:
        SbEdgeError: a value out of range, or a quantized V cache without flash attention, which llama.cpp
            does not support.
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
            raise SbEdgeError("depths must not be negative", found=list(self.depths))
        if (self.n_prompt > 0) == (self.n_gen > 0):
            raise SbEdgeError(
                "set either n_prompt or n_gen", found=f"n_prompt {self.n_prompt}, n_gen {self.n_gen}"
            )
        for name in ("n_threads", "repetitions", "n_ubatch", "n_warmup"):
            if getattr(self, name) < 1:
                raise SbEdgeError(f"{name} must be at least 1", found=getattr(self, name))
        if self.flash_attn == "off" and any(type_v not in FLOAT_TYPES for _, type_v in self.cache_types):
            raise SbEdgeError(
                "a quantized V cache needs flash attention",
                hint="use --flash-attn auto, or --cache-type-v f16",
            )

    @property
    def n_timed(self) -> int:
        """Tokens evaluated per repetition."""
        return self.n_prompt or self.n_gen

    def depths_of(self, subject: Subject) -> list[int]:
        """Depths of `subject`, ascending."""
        return sorted(set(self.depths))

    def fill_of(self, subject: Subject, n_depth: int) -> Fill:
        """Context fill of `subject` at `n_depth`."""
        return choose_fill(subject, n_depth, self.fill)


@dataclass(frozen=True)
class DecodeSettings(BenchSettings):
    """Settings for decoding token by token."""

    n_gen: int = 32


@dataclass(frozen=True)
class PrefillSettings(BenchSettings):
    """Settings for prompts: `n_prompt` tokens are timed at each depth.

    Args:
        fit_beyond: maximum measured depth of a Transformer; deeper results are fitted.
    """

    n_prompt: int = 512
    repetitions: int = 3
    fit_beyond: int = FIT_BEYOND

    def depths_of(self, subject: Subject) -> list[int]:
        """The requested depths, and those needed to fit the time to the first token."""
        depths = super().depths_of(subject)
        unaffordable = [depth for depth in depths if self.fill_of(subject, depth) != "real"]
        if not unaffordable:
            return depths
        deepest = min(unaffordable[0], self.fit_beyond)
        if sum(depth <= deepest for depth in depths) >= len(FIT_SHARES):
            return depths
        return sorted({*depths, *(int(deepest * share) for share in FIT_SHARES)})

    def fill_of(self, subject: Subject, n_depth: int) -> Fill:
        """Context fill as for decoding; "fitted" for a Transformer beyond `fit_beyond`."""
        fill = super().fill_of(subject, n_depth)
        return "fitted" if fill == "synthetic" and n_depth > self.fit_beyond else fill


@dataclass(frozen=True)
class Case:
    """One planned measurement."""

    subject: Subject
    n_depth: int
    type_k: str
    type_v: str
    fill: Fill
    is_continued: bool
    """Whether a deeper case of the same series continues from this context."""
    settings: BenchSettings

    @property
    def label(self) -> str:
        """llama-bench's label."""
        return label_of_test(self.settings.n_prompt, self.settings.n_gen, self.n_depth)

    @property
    def series(self) -> tuple[str, str, str]:
        """Identifier of cases whose contexts can continue one another: same weights and cache types."""
        return self.subject.sha256, self.type_k, self.type_v

    @property
    def n_ctx(self) -> int:
        """Context size, tokens; synthetic context fill can exceed the depth by a chunk before truncation."""
        needed = max(self.settings.n_timed, self.settings.n_warmup) + 1
        extra = max(needed, CHUNK if self.fill == "synthetic" else 0)
        return padded(self.n_depth + extra, CONTEXT_PADDING)

    def key(self, machine: Machine) -> RowKey:
        """Identity of its row on `machine`."""
        settings = self.settings
        return RowKey(
            model_sha256=self.subject.sha256,
            n_ubatch=settings.n_ubatch,
            n_threads=settings.n_threads,
            type_k=self.type_k,
            type_v=self.type_v,
            flash_attn=FLASH_ATTN[settings.flash_attn],
            n_prompt=settings.n_prompt,
            n_gen=settings.n_gen,
            n_depth=self.n_depth,
            repetitions=settings.repetitions,
            n_warmup=settings.n_warmup,
            fill=self.fill,
            machine_id=machine.id,
            engine_key=machine.engine_key,
        )


def label_of_test(n_prompt: int, n_gen: int, n_depth: int) -> str:
    """llama-bench's label of a test, for example `tg128 @ d65536` or `pp512 @ d4096`."""
    test = f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"
    return test + (f" @ d{n_depth}" if n_depth else "")


def examine(model: BenchModel) -> Subject:
    """Read a model's header and hash its content.

    Raises:
        GgufError: the file is missing, truncated or corrupt.
    """
    header = read_model(model.path)
    digest = sha256_of_bytes(*(bytes.fromhex(remembered_sha256(file)) for file in header.files))
    return Subject(model.name, model.path, header, digest, model.flash_attn)


def choose_fill(subject: Subject, n_depth: int, choice: FillChoice) -> Fill:
    """Context fill of `subject` at `n_depth`; "real" if the model is not a full-attention Transformer."""
    if subject.is_spikingbrain or not subject.can_roll_back or n_depth == 0 or choice == "real":
        return "real"
    if choice == "auto" and n_depth <= AUTO_REAL_DEPTH:
        return "real"
    return "synthetic"


def make_plan(subjects: Sequence[Subject], settings: BenchSettings) -> list[Case]:
    """All cases in order of depth; the models of a depth follow one another, for interleaving."""
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
