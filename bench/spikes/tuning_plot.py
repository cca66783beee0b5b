"""Results of spike tuning as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb_edge.bench.spikes.stats_plots import short_label
from sb_edge.quant.spikes.k_tuning import Figures, Kind, TunedPoint, Tuning
from sb_edge.util import plot
from sb_edge.util.files import require_folder
from sb_edge.util.output import write_json
from sb_edge.util.plot import PAPER

KINDS: dict[Kind, tuple[str, str, str]] = {
    "single": ("single k", PAPER.series[1], "o"),
    "tuned": ("k per input", PAPER.series[0], "s"),
}
"""Name, colour and marker of each kind."""

K_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
DIVERGENCE_TICKS = tuple(factor * 10.0**power for power in range(-6, 2) for factor in (1, 2, 5))


def save_tuning(tuning: Tuning, folder: Path) -> list[Path]:
    """Write tuning.json, tuning.png and tuning.svg into a folder, which is created if absent.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    require_folder(folder)
    document = folder / "tuning.json"
    write_json(document, tuning)
    return [
        document,
        *plot.write_figures(folder, {"tuning": ((16, 9), lambda figure: _draw(figure, tuning))}),
    ]


def _draw(figure: Figure, tuning: Tuning) -> None:
    (ratio, spikes, empty), (loss, other_loss, layers) = figure.subplots(2, 3)
    figure.get_layout_engine().set(h_pad=0.15)  # type: ignore[union-attr, call-arg]
    text = f"{tuning.text}, {tuning.tokens} tokens"
    other = f"{tuning.held_out}, {tuning.held_out_tokens} tokens, not tuned on"
    _draw_over_k(ratio, tuning, lambda figures: figures.ratio)
    ratio.axhline(1 + tuning.budget, **plot.DASHED)
    plot.list_names(ratio, [(name, colour) for name, colour, _ in KINDS.values()])
    plot.caption(
        ratio, PAPER, "Perplexity over that without spikes", f"{text}; dashed: budget; large: chosen"
    )
    _draw_over_k(spikes, tuning, lambda figures: figures.spikes_per_channel)
    plot.caption(spikes, PAPER, "Spikes per channel, bitwise coding", text)
    _draw_over_k(empty, tuning, lambda figures: 100 * figures.window_sparsity)
    plot.caption(empty, PAPER, "Empty slots in windows of three steps, %", text)
    _draw_loss(loss, tuning, lambda point: point.tuning)
    plot.caption(loss, PAPER, "Divergence (KL, nats), logarithmic", text)
    _draw_loss(other_loss, tuning, lambda point: point.held_out)
    plot.caption(other_loss, PAPER, "Divergence (KL, nats), logarithmic", other)
    _draw_layers(layers, tuning)
    plot.caption(
        layers, PAPER, "k of each input, logarithmic", "k per input within the budget; dashed: single k"
    )


def _draw_over_k(axes: Axes, tuning: Tuning, value: Callable[[Figures], float]) -> None:
    def place(point: TunedPoint) -> tuple[float, float]:
        return point.k, value(point.tuning)

    _draw_kinds(axes, tuning, place)
    axes.set_xscale("log")
    plot.fix_ticks(axes.xaxis, _k_ticks([point.k for point in tuning.points]))
    plot.dress(axes, PAPER, "k of all inputs (logarithmic); k per input: at the predicted loss of that k")


def _draw_loss(axes: Axes, tuning: Tuning, figures: Callable[[TunedPoint], Figures]) -> None:
    def place(point: TunedPoint) -> tuple[float, float]:
        return figures(point).additions_per_mac, figures(point).divergence

    _draw_kinds(axes, tuning, place)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    plot.fix_ticks(axes.yaxis, [tick for tick in DIVERGENCE_TICKS if low <= tick <= high])
    plot.dress(axes, PAPER, "additions per MAC")


def _draw_kinds(axes: Axes, tuning: Tuning, place: Callable[[TunedPoint], tuple[float, float]]) -> None:
    """One line per kind; the chosen point is larger."""
    for kind, (_, colour, marker) in KINDS.items():
        points = sorted(place(point) for point in tuning.points if point.kind == kind)
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=3.5, lw=1.6)
        chosen = tuning.single if kind == "single" else tuning.tuned
        axes.plot(*place(chosen), color=colour, marker=marker, ms=10, mec=PAPER.background, mew=1.2)


def _draw_layers(axes: Axes, tuning: Tuning) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for site, k in zip(tuning.sites, tuning.tuned.ks, strict=True):
        label = short_label([name for name in site.projections if name != "ssm_f"] or site.projections)
        lines.setdefault(label, []).append((site.layer, k))
    axes.axhline(tuning.single.k, **plot.DASHED)
    for points, colour, marker in zip(lines.values(), PAPER.series * 2, plot.MARKERS * 2, strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4, lw=1.4)
    plot.list_names(axes, list(zip(lines, PAPER.series * 2, strict=False)))
    axes.set_yscale("log")
    plot.fix_ticks(axes.yaxis, _k_ticks([*tuning.tuned.ks, tuning.single.k]))
    axes.margins(y=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.dress(axes, PAPER, "layer")


def _k_ticks(ks: Sequence[float]) -> list[float]:
    """Ticks that cover these values of k."""
    return [tick for tick in K_TICKS if min(ks) * 0.7 <= tick <= max(ks) * 1.4]
