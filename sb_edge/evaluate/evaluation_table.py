"""The tables of `sb-edge eval`: one for a terminal, one for Markdown."""

from __future__ import annotations

from sb_edge.evaluate.evaluation import Evaluation, TaskScores
from sb_edge.util.output import format_depth
from sb_edge.util.table import Column, Table


def rich_evaluation(evaluation: Evaluation) -> Table:
    """One column for the base and for each spike setting, one row per measure."""
    markdown = _table(evaluation)
    settings = (_setting(quality.spikes) or "as stored" for quality, _ in evaluation.runs)
    table = Table(Column("", right=False), "base", *settings, gap=1)
    for number, measure in enumerate(markdown.columns[1:], 1):
        table.add(measure.heading, *(cells[number] for cells in markdown.rows))
    return table


def markdown_evaluation(evaluation: Evaluation) -> str:
    """One row for the base and for each spike setting, one column per measure."""
    return _table(evaluation).markdown()


def _table(evaluation: Evaluation) -> Table:
    first = evaluation.runs[0][0]
    questions = (f"{score.kind} ({score.n})" for score in evaluation.base.questions)
    passkeys = (f"passkey {format_depth(key.distance)} ({key.trials})" for key in evaluation.base.passkeys)
    table = Table("", "perplexity", "ratio", "KL", *questions, *passkeys)
    table.add(first.base, f"{first.base_perplexity:.3f}", "", "", *_scores(evaluation.base))
    for quality, tasks in evaluation.runs:
        name = ", ".join(filter(None, (quality.model, _setting(quality.spikes))))
        figures = (f"{quality.perplexity:.3f}", f"{quality.ratio:.4f}", f"{quality.kl:.4f}")
        table.add(name, *figures, *_scores(tasks))
    return table


def _setting(spikes: float | None) -> str:
    if spikes is None:
        return ""
    return f"k = {spikes:g}" if spikes else "no spikes"


def _scores(tasks: TaskScores) -> list[str]:
    return [f"{score.acc:.1%}" for score in tasks.questions] + [f"{key.found:.0%}" for key in tasks.passkeys]
