"""What layers do for retrieval, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sb_edge.distill.layer_recall import LayerRecall, LimitedScore, RecallScore
from sb_edge.util.plot import PAPER, caption, dress, write_figure
from sb_edge.util.table import Table


def layer_table(found: LayerRecall, entries: Sequence[LimitedScore]) -> Table:
    """One row for the base as it is, and for each limited layer or head."""
    kinds = list(found.whole.log_p)
    columns = [text for kind in kinds for text in (f"{kind} ({found.n_cases[kind]})", "log p")]
    table = Table(
        "limited",
        *columns,
        "lost",
        "perplexity",
        title=f"{found.base}: one layer sees {found.span} tokens",
        notes=(
            "lost: nats that an answer's tokens lose, mean over the kinds; perplexity: of "
            f"{found.text_tokens} tokens of text, over the base's.",
        ),
    )

    def add(name: str, score: RecallScore, damage: float | None) -> None:
        ratio = math.exp(score.loss - found.whole.loss)
        cells = [x for kind in kinds for x in (f"{score.found[kind]:.0%}", f"{score.log_p[kind]:.2f}")]
        table.add(name, *cells, "" if damage is None else f"{damage:.3f}", f"{ratio:.3f}")

    add("nothing", found.whole, None)
    for entry in entries:
        name = f"layer {entry.layer}" if entry.head is None else f"layer {entry.layer}, head {entry.head}"
        add(name, entry.score, entry.damage)
    return table


def plot_layers(path: Path, found: LayerRecall) -> None:
    """Draw one dot a layer: what retrieval loses against what perplexity loses.

    Raises:
        OutputError: the file cannot be written.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for entry in found.layers:
            ratio = math.exp(entry.score.loss - found.whole.loss)
            axes.plot(ratio, entry.damage, "o", color=PAPER.series[0], ms=5)
            axes.annotate(str(entry.layer), (ratio, entry.damage), (4, 3), textcoords="offset points")
        axes.set_yscale("symlog", linthresh=0.1)
        caption(axes, PAPER, "What a layer retrieves", f"nats an answer's token loses; {found.base}")
        dress(axes, PAPER, f"perplexity over the base's, the layer limited to {found.span} tokens")

    write_figure(path, (7.0, 4.6), draw)
