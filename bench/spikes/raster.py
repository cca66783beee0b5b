"""Spike rasters: spikes of an input by channel and virtual time step (report, fig. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedFormatter, FixedLocator
from numpy.typing import NDArray

from sb_edge.arch.coding import UNSIGNED, Coding, encode, steps
from sb_edge.arch.spike_plan import PROJECTIONS
from sb_edge.evaluate.perplexity import text_tokens
from sb_edge.runtime.session import Model
from sb_edge.runtime.spike_counters import record_counts
from sb_edge.util.errors import InferenceError, SpikeError
from sb_edge.util.plot import PAPER, write_figure

MAX_TOKENS = 12
MAX_CHANNELS = 64

MAX_STEPS = 32
"""Maximum number of drawn steps per token; a burst in unary coding has thousands."""

LABEL_CHARACTERS = 10

_COLOURS = ListedColormap([PAPER.series[1], PAPER.background, PAPER.series[0]])
_LEVELS = BoundaryNorm([-1.5, -0.5, 0.5, 1.5], 3)


@dataclass(frozen=True)
class RecordedInput:
    """Spike counts of one coded input on a prompt.

    Attributes:
        model: file name of the model.
        layer, projection, k: the input and its coding.
        labels: printable text of each token.
        counts: int32 [tokens, n].
    """

    model: str
    layer: int
    projection: str
    k: float
    labels: tuple[str, ...]
    counts: NDArray[np.int32]


@dataclass(frozen=True)
class Raster:
    """Spike trains of selected channels, token by token.

    Attributes:
        coding: coding of the trains.
        channels: [shown] indices into the input, ascending.
        train: int8 [shown, drawn steps of all tokens], -1, 0 or 1.
        token_steps: T of each token; the first `MAX_STEPS` steps are drawn.
        magnitudes: |s| was encoded because the coding has no signs.
    """

    coding: Coding
    channels: NDArray[np.intp]
    train: NDArray[np.int8]
    token_steps: tuple[int, ...]
    magnitudes: bool

    @property
    def drawn_steps(self) -> list[int]:
        """Number of drawn steps per token; the sum is the width of `train`."""
        return [min(steps, MAX_STEPS) for steps in self.token_steps]


def record_input(
    model: Model,
    prompt: str,
    layer: int,
    projection: str,
    *,
    max_tokens: int = MAX_TOKENS,
    n_threads: int | None = None,
) -> RecordedInput:
    """Record the spike counts at the input of one projection for the first tokens of a prompt.

    Args:
        model: model loaded with spikes.
        prompt: text of at least one token.
        layer: index of the layer, from 0.
        projection: one of `PROJECTIONS`.
        max_tokens: maximum number of evaluated tokens.
        n_threads: None: `default_threads`.

    Raises:
        SpikeError: no such layer or projection, or its input is not coded.
        InferenceError: no vocabulary, or an empty prompt.
    """
    n_layer = model.header.integer("block_count")
    if not 0 <= layer < n_layer:
        raise SpikeError(
            "no such layer", path=model.path, item="--layer", found=layer, expected=f"0 to {n_layer - 1}"
        )
    if projection not in PROJECTIONS:
        raise SpikeError("no such projection", found=repr(projection), expected=" ".join(PROJECTIONS))
    tokens = text_tokens(model, prompt, max_tokens, parse_special=True)
    if not tokens:
        raise InferenceError("no tokens to evaluate", path=model.path)
    recorded = record_counts(model, tokens, layers=[layer], projections=[projection], n_threads=n_threads)
    found = recorded.get((layer, projection))
    if found is None:
        raise SpikeError(
            "its input is not coded",
            path=model.path,
            item=f"{projection} of layer {layer}",
            hint="`sb-edge inspect` lists the coded inputs; ssm_f exists in GLA layers only",
        )
    labels = tuple(token_label(model.token_piece(token) or model.token_text(token)) for token in tokens)
    return RecordedInput(Path(model.path).name, layer, projection, found.k, labels, found.counts)


def make_raster(
    counts: NDArray[np.int32], coding: Coding, *, n_channels: int = MAX_CHANNELS, magnitudes: bool = False
) -> Raster:
    """Encode the most active channels of an input.

    The number of steps of a token depends on its largest count over all channels, shown or not.

    Args:
        counts: int32 [tokens, n].
        coding: coding of the trains.
        n_channels: number of channels to show, those with the largest sum of |count|.
        magnitudes: encode |count| if the coding has no signs.

    Raises:
        SpikeError: negative counts in a coding without signs, and `magnitudes` is False.
    """
    unsigned = coding in UNSIGNED and bool((counts < 0).any())
    if unsigned and not magnitudes:
        raise SpikeError(
            "carries no negative counts",
            item=f"coding {coding.value}",
            found=f"{int((counts < 0).sum())} negative of {counts.size}",
            hint="use a coding with signs, or --magnitudes to draw |s|",
        )
    if unsigned:
        counts = np.abs(counts)
    activity = np.abs(counts.astype(np.int64)).sum(axis=0)
    channels = np.sort(np.argsort(-activity, kind="stable")[:n_channels])
    needed = [max(1, steps(coding, int(largest))) for largest in np.abs(counts.astype(np.int64)).max(axis=1)]
    trains = [
        encode(row[channels], coding, n_steps)[:MAX_STEPS].T
        for row, n_steps in zip(counts, needed, strict=True)
    ]
    return Raster(coding, channels, np.concatenate(trains, axis=1), tuple(needed), unsigned)


def save_rasters(recorded: RecordedInput, rasters: Sequence[Raster], files: Sequence[Path]) -> None:
    """Draw the rasters below one another, and write the figure to each file.

    Raises:
        OutputError: an extension other than .png, .svg and .pdf, or a file cannot be written.
    """
    shown = len(rasters[0].channels)
    width = max(7.0, 1.2 + 1.05 * len(recorded.labels))
    height = 1.1 + max(1.2, 0.04 * shown)

    def draw(figure: Figure) -> None:
        figure.suptitle(
            f"Input of {recorded.projection}, layer {recorded.layer}, k = {recorded.k:g}",
            x=0.01,
            ha="left",
            color=PAPER.ink,
            fontsize=13,
            fontweight="bold",
        )
        panels = figure.subplots(len(rasters), 1, squeeze=False)[:, 0]
        for axes, raster in zip(panels, rasters, strict=True):
            _draw_raster(axes, raster, recorded.labels)
        panels[-1].set_xlabel(f"virtual time steps of each token\n{recorded.model}", color=PAPER.ink)

    for file in files:
        write_figure(file, (width, 0.5 + height * len(rasters)), draw)


def token_label(piece: bytes | str) -> str:
    """A token as short printable text, with visible blanks and codes for characters that the font lacks.

    >>> token_label(b" the"), token_label(b"\\n")
    ('·the', '⏎')
    """
    text = piece if isinstance(piece, str) else piece.decode("utf-8", "replace")
    visible = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    drawable = "".join(
        character if _has_glyph(character) else f"U+{ord(character):04X}" for character in visible
    )
    if len(drawable) > LABEL_CHARACTERS:
        return drawable[: LABEL_CHARACTERS - 1] + "…"
    return drawable or "(empty)"


@cache
def _has_glyph(character: str) -> bool:
    return bool(get_font(findfont(FontProperties())).get_char_index(ord(character)))


def _draw_raster(axes: Axes, raster: Raster, labels: Sequence[str]) -> None:
    shown = len(raster.channels)
    # Viewers do not smooth the cells of an SVG with "none".
    axes.imshow(raster.train, cmap=_COLOURS, norm=_LEVELS, aspect="auto", interpolation="none")
    starts = np.cumsum([0, *raster.drawn_steps])
    for start in starts[1:-1]:
        axes.axvline(start - 0.5, color=PAPER.ink, lw=0.6)
    centres = (starts[:-1] + starts[1:] - 1) / 2
    for centre, label in zip(centres, labels, strict=True):
        axes.annotate(
            label,
            (centre, 1),
            (0, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            color=PAPER.ink,
            fontsize=9,
            parse_math=False,
        )
    _caption(axes, raster)
    axes.xaxis.set_major_locator(FixedLocator(centres.tolist()))
    axes.xaxis.set_major_formatter(FixedFormatter([_steps_label(steps) for steps in raster.token_steps]))
    rows = np.unique(np.linspace(0, shown - 1, min(shown, 8)).astype(int))
    axes.yaxis.set_major_locator(FixedLocator(rows.tolist()))
    axes.yaxis.set_major_formatter(FixedFormatter([str(raster.channels[row]) for row in rows]))
    axes.set_ylabel("channel", color=PAPER.ink)
    axes.tick_params(colors=PAPER.ink, length=0, labelsize=8)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PAPER.grid)


def _caption(axes: Axes, raster: Raster) -> None:
    """Name of the coding, then the legend in the colours of the spikes."""
    parts = [(raster.coding.value, PAPER.ink, "bold"), ("spike +1", PAPER.series[0], "bold")]
    if (raster.train < 0).any():
        parts.append(("spike -1", PAPER.series[1], "bold"))
    if raster.magnitudes:
        parts.append(("of |s|: this coding has no signs", PAPER.ink, "normal"))
    anchor: Any = "axes fraction"
    where, offset = (0.0, 1.0), (0, 25)
    for text, colour, weight in parts:
        anchor = axes.annotate(
            text,
            where,
            offset,
            xycoords=anchor,
            textcoords="offset points",
            color=colour,
            fontweight=weight,
            fontsize=10,
            va="center",
        )
        where, offset = (1.0, 0.5), (10, 0)


def _steps_label(steps: int) -> str:
    return f"T={steps}" if steps <= MAX_STEPS else f"T={steps}, {MAX_STEPS} drawn"
