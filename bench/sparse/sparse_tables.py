"""Tables of `sb-edge quantize --sparse-layout` and `sb-edge bench sparse`; under 80 columns wide."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sb_edge.arch.sparse_plan import SPARSE_PROJECTIONS
from sb_edge.bench.rows.ratios import Ratio
from sb_edge.bench.sparse.curve import SparseCurve
from sb_edge.bench.sparse.sparse_speed import SparseSpeed
from sb_edge.quant.sparse.layout import SparseLayout
from sb_edge.util.output import format_bytes

NOTE = (
    "silent: share of the input's channels below their dead zone; error: share of the input's power, "
    "weighted with the columns' norms, that those have; loss: nats a token for an error of 1 in all layers. "
    "Means over the sparse layers. Perplexities are of decoding token by token."
)


def layout_table(layout: SparseLayout) -> RenderableType:
    """By kind of projection: which layers got a layout, with how much silence and which error."""
    chosen = layout.tuning.chosen
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("projection", no_wrap=True)
    for heading in ("sparse layers", "columns", "silent", "error", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in SPARSE_PROJECTIONS:
        sites = [site for site in layout.sites if site.projection == name]
        loss = layout.tuning.losses.get(name)
        table.add_row(
            name,
            str(len(sites)),
            " ".join(sorted({site.type for site in sites})),
            f"{statistics.fmean(site.silent for site in sites):.1%}" if sites else "",
            f"{statistics.fmean(site.error for site in sites):.4f}" if sites else "",
            "" if loss is None else f"{loss:.3g}",
        )
    left_out = f"; {len(layout.left_out)} cannot have one" if layout.left_out else ""
    return Group(
        Text(
            f"Sparse layout of {len(layout.sites)} of {layout.n_projections} projections{left_out}: "
            f"{format_bytes(layout.added_bytes)} added, neurons of {len(layout.reordered)} layers reordered"
        ),
        table,
        Text(
            f"{layout.text}, {layout.tokens} predicted tokens: perplexity {layout.tuning.dense:.3f} dense, "
            f"{chosen.ratio - 1:+.2%} sparse (budget {layout.budget:.2%}); "
            f"{chosen.counts.silent_share:.1%} of all channels silent"
        ),
        Text(
            f"{layout.held_out}, not tuned on, {layout.held_out_tokens} predicted tokens: "
            f"{layout.held_out_dense:.3f} dense, {layout.held_out_ratio - 1:+.2%} sparse"
        ),
        Text(f"\n{NOTE}", style="dim"),
    )


def speed_table(result: SparseSpeed) -> RenderableType:
    """Decode speed, perplexity and what was skipped, with the layout and without."""
    table = Table(title=f"{result.model}, {result.label}, {len(result.dense.samples_ts)} pairs")
    for heading in ("", "tokens per second", "perplexity"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("dense", f"{result.dense.median_ts:.2f}", f"{result.perplexity:.3f}")
    sparse = result.perplexity * result.perplexity_ratio
    table.add_row("sparse", f"{result.sparse.median_ts:.2f}", f"{sparse:.3f}")
    change = f"{result.perplexity_ratio - 1:+.2%}"
    table.add_row("sparse / dense", _ratio(result.ratio), change)
    return Group(
        table,
        Text(
            f"{result.text}, {result.tokens} predicted tokens: {result.counts.silent_share:.1%} of the "
            f"sparse projections' channels silent, {result.counts.dense_share:.1%} of their products dense"
        ),
    )


def curve_table(curves: Sequence[SparseCurve]) -> RenderableType:
    """Speed of the sparse product over the dense one, by the share of silent channels."""
    table = Table(title=f"Sparse product over dense, one token, {curves[0].n_threads} thread(s)")
    table.add_column("silent", justify="right")
    for curve in curves:
        table.add_column(curve.label, justify="right")
    for points in zip(*(curve.points for curve in curves), strict=True):
        table.add_row(f"{points[0].silent:.0%}", *(_ratio(point.ratio) for point in points))
    return table


def _ratio(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
