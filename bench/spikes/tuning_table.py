"""The table of spike tuning; under 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from sb_edge.quant.spikes.k_tuning import Figures, TunedPoint, Tuning
from sb_edge.util.table import Column, Table

NOTE = (
    "ratio: perplexity over that without spikes, +- its standard error. KL: from the predictions with the "
    "finest coding, nats per token. bits: spikes per entry (one channel, one token), bitwise coding. "
    "add/MAC: bits, weighted with the number of outputs that use the channel. empty: slots without a spike "
    "in windows of three steps."
)

CHOICES = {"single": "the single k, which spikes less", "tuned": "each input's own k"}

COLUMNS = (
    Column("k", right=False, min_width=19),
    *(
        Column(heading, min_width=width)
        for heading, width in (
            ("perplexity", 10), ("ratio", 6), ("+-", 6), ("KL", 7), ("bits", 6), ("add/MAC", 7), ("empty", 7)
        )
    ),
)  # fmt: skip
"""Equal widths in both tables."""


def tuning_table(tuning: Tuning) -> RenderableType:
    """A single k and each input's own k at the same budget, on the tuning text and on a held-out text."""
    title = f"\n{tuning.text}: {tuning.tokens} predicted tokens"
    other = f"\n{tuning.held_out}, not tuned on: {tuning.held_out_tokens} predicted tokens"
    return Group(
        Text(
            f"Fewest spikes with perplexity up by at most {tuning.budget:.2%}; "
            f"stored: {CHOICES[tuning.chosen.kind]}"
        ),
        _table(title, tuning, tuning.without, lambda point: point.tuning),
        _table(other, tuning, tuning.held_out_without, lambda point: point.held_out),
        Text(
            f"\nAdditions saved at equal KL, mean over the curves: {tuning.savings[0]:.1%}, "
            f"not tuned on {tuning.savings[1]:.1%}"
        ),
        Text(f"\n{NOTE}", style="dim"),
    )


def _table(title: str, tuning: Tuning, without: float, figures: Callable[[TunedPoint], Figures]) -> Table:
    single, tuned = figures(tuning.single), figures(tuning.tuned)
    table = Table(*COLUMNS, title=title, gap=1)
    table.add("off", f"{without:.3f}", "1")
    table.add(f"{tuning.single.k:.3g} everywhere", *_row(single))
    table.add(f"tuned, {min(tuning.tuned.ks):.3g} to {max(tuning.tuned.ks):.3g}", *_row(tuned))
    table.add("tuned over single", *_gain(single, tuned), dim=True)
    return table


def _row(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures.perplexity:.3f}",
        f"{figures.ratio:.4f}",
        f"{figures.ratio_error:.4f}",
        f"{figures.divergence:.4f}",
        f"{figures.spikes_per_channel:.3f}",
        f"{figures.additions_per_mac:.3f}",
        f"{figures.window_sparsity:.1%}",
    )


def _gain(single: Figures, tuned: Figures) -> tuple[str, ...]:
    return (
        f"{tuned.perplexity / single.perplexity - 1:+.2%}",
        "",
        "",
        f"{tuned.divergence / single.divergence - 1:+.1%}" if single.divergence else "",
        f"{tuned.spikes_per_channel / single.spikes_per_channel - 1:+.1%}",
        f"{tuned.additions_per_mac / single.additions_per_mac - 1:+.1%}",
        f"{100 * (tuned.window_sparsity - single.window_sparsity):+.1f} pt",
    )
