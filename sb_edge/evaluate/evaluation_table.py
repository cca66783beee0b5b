"""The table of `sb-edge eval`, for a terminal and for Markdown."""

from __future__ import annotations

from rich.table import Table

from sb_edge.evaluate.evaluation import Evaluation, TaskScores
from sb_edge.util.output import format_depth


def rich_evaluation(evaluation: Evaluation) -> Table:
    """For a terminal: a column for the base and for each setting of the spikes, a row for each measure."""
    (_, *measures), rows = _cells(evaluation)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column()
    for heading in ("base", *(_setting(quality.spikes) or "as stored" for quality, _ in evaluation.runs)):
        table.add_column(heading, justify="right")
    for number, measure in enumerate(measures, 1):
        table.add_row(measure, *(row[number] for row in rows))
    return table


def markdown_evaluation(evaluation: Evaluation) -> str:
    """For a README."""
    headings, rows = _cells(evaluation)
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, marks, *rows))


def _cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; the base is the first row."""
    first = evaluation.runs[0][0]
    headings = ["", "perplexity", "ratio", "KL", *_task_headings(evaluation.base)]
    rows = [[first.base, f"{first.base_perplexity:.3f}", "", "", *_task_cells(evaluation.base)]]
    for quality, tasks in evaluation.runs:
        figures = [f"{quality.perplexity:.3f}", f"{quality.ratio:.4f}", f"{quality.kl:.4f}"]
        name = ", ".join(filter(None, (quality.model, _setting(quality.spikes))))
        rows.append([name, *figures, *_task_cells(tasks)])
    return headings, rows


def _setting(spikes: float | None) -> str:
    if spikes is None:
        return ""
    return f"k = {spikes:g}" if spikes else "no spikes"


def _task_headings(tasks: TaskScores) -> list[str]:
    questions = [f"{score.kind} ({score.n})" for score in tasks.questions]
    return questions + [f"passkey {format_depth(key.distance)} ({key.trials})" for key in tasks.passkeys]


def _task_cells(tasks: TaskScores) -> list[str]:
    return [f"{score.acc:.1%}" for score in tasks.questions] + [f"{key.found:.0%}" for key in tasks.passkeys]
