"""Tables of sparse layouts and of `sb-edge bench sparse`; under 80 columns wide."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from sb_edge.arch.sparse_plan import SPARSE_PROJECTIONS
from sb_edge.bench.rows.ratios import Ratio
from sb_edge.bench.sparse.curve import SparseCurve
from sb_edge.bench.sparse.sparse_speed import SparseSpeed
from sb_edge.quant.sparse.layout import SparseLayout
from sb_edge.util.output import format_bytes
from sb_edge.util.table import Column, Table

NOTE = (
    "silent: share of the input's channels within their dead zone. error: share of the input's power in "
    "these channels, weighted with the columns' norms. loss: nats per token for an error of 1 in all layers. "
    "All are means over the sparse layers. Perplexities are measured by decoding token by token."
)


def layout_table(layout: SparseLayout) -> RenderableType:
    """Sparse layers, silent channels and error by kind of projection, and the perplexities."""
    chosen = layout.tuning.chosen
    left_out = f"; {len(layout.left_out)} do not support one" if layout.left_out else ""
    title = (
        f"Sparse layout of {len(layout.sites)} of {layout.n_projections} projections{left_out}: "
        f"{format_bytes(layout.added_bytes)} added, neurons of {len(layout.reordered)} layers reordered"
    )
    table = Table("projection", "sparse layers", "columns", "silent", "error", "loss", title=title, gap=1)
    for name in SPARSE_PROJECTIONS:
        sites = [site for site in layout.sites if site.projection == name]
        loss = layout.tuning.losses.get(name)
        table.add(
            name,
            str(len(sites)),
            " ".join(sorted({site.type for site in sites})),
            f"{statistics.fmean(site.silent for site in sites):.1%}" if sites else "",
            f"{statistics.fmean(site.error for site in sites):.4f}" if sites else "",
            "" if loss is None else f"{loss:.3g}",
        )
    return Group(
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


def speed_table(result: SparseSpeed) -> Table:
    """Decode speed and perplexity with and without the layout, and the share of silent channels."""
    counts = result.counts
    note = (
        f"{result.text}, {result.tokens} predicted tokens: {counts.silent_share:.1%} of the sparse "
        f"projections' channels silent, {counts.dense_share:.1%} of their products dense"
    )
    title = f"{result.model}, {result.label}, {len(result.dense.samples_ts)} pairs"
    table = Table("", "tokens per second", "perplexity", title=title, notes=[note])
    table.add("dense", f"{result.dense.median_ts:.2f}", f"{result.perplexity_dense:.3f}")
    sparse = result.perplexity_dense * result.perplexity_ratio
    table.add("sparse", f"{result.sparse.median_ts:.2f}", f"{sparse:.3f}")
    table.add("sparse / dense", _ratio(result.ratio), f"{result.perplexity_ratio - 1:+.2%}")
    return table


def curve_table(curves: Sequence[SparseCurve]) -> Table:
    """Speed of the sparse product over the dense one by share of silent channels."""
    title = f"Speed of the sparse product over the dense product, one token, {curves[0].n_threads} thread(s)"
    table = Table("silent", *(Column(curve.label, wrap=True) for curve in curves), title=title)
    for points in zip(*(curve.points for curve in curves), strict=True):
        table.add(f"{points[0].silent:.0%}", *(_ratio(point.ratio) for point in points))
    return table


def _ratio(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
