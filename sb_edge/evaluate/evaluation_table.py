"""The table of `sb-edge eval`, for a terminal and for Markdown."""

from __future__ import annotations

from sb_edge.evaluate.evaluation import Evaluation, TaskScores
from sb_edge.util.output import format_depth
from sb_edge.util.table import Column, Table


def evaluation_table(evaluation: Evaluation) -> Table:
    """One column for the base and for each spike setting, one row per measure."""
    runs = evaluation.runs
    means = [run.quality for run in runs]
    settings = (_setting(quality.spikes) for quality in means)
    table = Table(Column("", right=False), "base", *settings, gap=1)
    table.add("perplexity", f"{means[0].base_perplexity:.3f}", *(f"{mean.perplexity:.3f}" for mean in means))
    table.add("over the base's", "", *(f"{mean.ratio:.4f}" for mean in means))
    if len(runs[0].texts) > 1:
        for same in zip(*(run.texts for run in runs), strict=True):
            table.add(f"- {same[0].text} ({same[0].tokens})", "", *(f"{each.ratio:.4f}" for each in same))
    table.add("KL", "", *(f"{mean.kl:.4f}" for mean in means))
    columns = [_scores(tasks) for tasks in (evaluation.base, *(run.tasks for run in runs))]
    for name in columns[0]:
        table.add(name, *(column[name] for column in columns))
    return table


def _setting(spikes: float | None) -> str:
    if spikes is None:
        return "as stored"
    return f"k = {spikes:g}" if spikes else "no spikes"


def _scores(tasks: TaskScores) -> dict[str, str]:
    questions = {f"{score.kind} ({score.n})": f"{score.acc:.1%}" for score in tasks.questions}
    passkeys = {
        f"passkey {format_depth(key.distance)} ({key.trials})": f"{key.found:.0%}" for key in tasks.passkeys
    }
    return questions | passkeys
