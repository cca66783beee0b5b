"""The table of `sb-edge eval`, for a terminal and for Markdown."""

from __future__ import annotations

from sb_edge.evaluate.evaluation import Evaluation
from sb_edge.evaluate.paired import PairedDifference, paired_difference
from sb_edge.util.output import format_depth
from sb_edge.util.table import Column, Table


def evaluation_table(evaluation: Evaluation) -> Table:
    """One column for the base and for each spike setting, one row per measure."""
    runs = evaluation.runs
    means = [run.quality for run in runs]
    settings = (_setting(quality.spikes) for quality in means)
    notes = ["to the base: the difference in points, its 95 % interval, p of McNemar's exact test."]
    asked = evaluation.base.questions
    table = Table(Column("", right=False), "base", *settings, notes=notes if asked else (), gap=1)
    table.add("perplexity", f"{means[0].base_perplexity:.3f}", *(f"{mean.perplexity:.3f}" for mean in means))
    table.add("over the base's", "", *(f"{mean.ratio:.4f}" for mean in means))
    if len(runs[0].texts) > 1:
        for same in zip(*(run.texts for run in runs), strict=True):
            table.add(f"- {same[0].text} ({same[0].tokens})", "", *(f"{each.ratio:.4f}" for each in same))
    if len(runs) > 1:
        over_first = (f"{mean.ratio / means[0].ratio:.4f}" for mean in means[1:])
        table.add(f"over {_setting(means[0].spikes)}", "", "", *over_first)
    table.add("KL", "", *(f"{mean.kl:.4f}" for mean in means))
    columns = [asked, *(run.tasks.questions for run in runs)]
    for scores in zip(*columns, strict=True):
        table.add(f"{scores[0].kind} ({scores[0].n})", *(f"{score.acc:.1%}" for score in scores))
        if scores[0] is asked[0]:
            differences = [paired_difference(score.hits, asked[0].hits) for score in scores[1:]]
            table.add("- to the base", "", *map(points, differences))
            table.add("- p", "", *(f"{difference.p:.2f}" for difference in differences))
    return table


def _setting(spikes: float | None) -> str:
    if spikes is None:
        return "as stored"
    return f"k = {spikes:g}" if spikes else "no spikes"


def recall_table(evaluation: Evaluation) -> Table:
    """One row per task and spike setting: answers found, and the paired differences in points."""
    table = Table(
        "task",
        "tokens",
        "spikes",
        "base",
        "found",
        "to the base",
        "to the first",
        title="Retrieval from the context, by tokens between telling and asking",
        notes=("Differences on the same cases in points, with 95 % intervals; first: first spike setting.",),
        gap=1,
    )
    runs = evaluation.runs
    first = runs[0].tasks.recall
    for number, base in enumerate(evaluation.base.recall):
        for run in runs:
            found = run.tasks.recall[number]
            table.add(
                f"{base.task.name} ({base.task.trials})",
                format_depth(base.task.distance),
                _setting(run.quality.spikes),
                f"{base.found:.0%}",
                f"{found.found:.0%}",
                points(paired_difference(found.hits, base.hits)),
                points(paired_difference(found.hits, first[number].hits)) if run is not runs[0] else "",
            )
    return table


def points(difference: PairedDifference) -> str:
    """A difference and its interval in points: "-3 [-7, +1]"."""
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
