"""`sb-edge eval`."""

from __future__ import annotations

import re
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sb_edge.cli.file_options import FileCommand, OutputFile
from sb_edge.cli.options import integer_option, json_option, model_argument, threads_option, tokens_option
from sb_edge.cli.params import PATH, CommaSeparated, OneOf, TokenCounts, Tokens
from sb_edge.cli.spike_options import SpikeK
from sb_edge.evaluate.evaluation import Tasks, evaluate_model
from sb_edge.evaluate.evaluation_table import evaluation_table, recall_table
from sb_edge.evaluate.finished import Finished
from sb_edge.evaluate.perplexity import evaluation_texts, read_text
from sb_edge.evaluate.questions import read_questions
from sb_edge.evaluate.retrieval import RECALL_TASKS, Distance, RecallTask
from sb_edge.evaluate.retrieval import recall_tasks as tasks_at
from sb_edge.models.registry import resolve_gguf
from sb_edge.util.files import atomic_output
from sb_edge.util.output import emit

BUILT_IN = "built-in"


class DistanceType(click.ParamType):
    """A number of tokens, or of windows: `256`, `1k`, `1.5w`."""

    name = "distance"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Distance:
        """The distance; fails as click's own types do."""
        if re.fullmatch(r"\d{1,4}(\.\d{1,4})?w", value, re.ASCII):
            return Distance(float(value[:-1]), is_windows=True)
        return Distance(Tokens(0).convert(value, param, ctx))


@click.command(cls=FileCommand)
@model_argument()
@click.option("--base", required=True, help="GGUF of the base model; `default-base` for `default`.")
@click.option(
    "--text",
    "text_file",
    type=PATH,
    help="UTF-8 text that neither model was trained on.  [default: five kinds of text]",
)
@tokens_option("--tokens", default=8192, help="Maximum number of tokens of each text.", least=2)
@tokens_option(
    "-c", "--ctx-size", "context", default=2048, help="Tokens per chunk; each chunk starts afresh.", least=16
)
@click.option(
    "--questions",
    metavar="FILE",
    help="Multiple-choice questions, a JSON Lines file; `built-in`: the 220 questions of this project.",
)
@click.option(
    "--passkey",
    "distances",
    type=TokenCounts(1),
    help="Run passkey retrieval at these distances (tokens): 256,1k,8k.",
)
@click.option(
    "--trials",
    type=CommaSeparated(click.IntRange(1), "numbers"),
    default="10",
    show_default=True,
    help="Passkeys per distance; the last number is for all that follow: 10,10,2.",
)
@click.option(
    "--recall",
    "recall_distances",
    type=CommaSeparated(DistanceType(), "distances"),
    is_flag=False,
    flag_value="0,256,1k",
    help="Ask for passkeys, dictionaries of words and facts at these distances: tokens, or windows of MODEL "
    "as in 0.5w,1.5w,3w.  [0,256,1k if none are given]",
)
@click.option(
    "--recall-tasks",
    type=CommaSeparated(OneOf(list(RECALL_TASKS)), "names"),
    default=",".join(RECALL_TASKS),
    show_default=True,
    help="Tasks of --recall.",
)
@integer_option("--cases", default=20, help="Cases per task and distance of --recall.")
@click.option(
    "--spike-k",
    "spikes",
    type=CommaSeparated(SpikeK(zero=True, file=True), "settings"),
    help="Spike settings to compare: file (as the file says), 0 (none), or a k: file,0,3.  [default: file]",
)
@click.option("--markdown", type=OutputFile(), help="Write a Markdown table.")
@click.option(
    "--parts",
    type=OutputFile(),
    help="Keep each finished measurement in FILE (JSON), and take up those that it has.",
)
@threads_option
@json_option
def command(
    model: str,
    base: str,
    text_file: Path | None,
    tokens: int,
    context: int,
    questions: str | None,
    distances: tuple[int, ...] | None,
    trials: tuple[int, ...],
    recall_distances: tuple[Distance, ...] | None,
    recall_tasks: tuple[str, ...],
    cases: int,
    spikes: tuple[float | None, ...] | None,
    markdown: Path | None,
    parts: Path | None,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Measure how well a model predicts a text, beside its base.

    MODEL is a GGUF or `default`. The ratio of the perplexities is the loss; KL is the divergence from
    the base's predictions in nats a token. Without --text there are five texts, prose, technical, code,
    dialogue and tables; their mean is the geometric one. A question counts as answered if the right choice
    is the likeliest to follow it; a passkey, number or fact as found if greedy decoding gives every token.
    """
    if len(trials) > max(len(distances or ()), 1):
        raise click.BadParameter(f"{len(trials)} numbers, but fewer distances", param_hint="--trials")
    if text_file is None:
        texts = evaluation_texts()
    else:
        text, name = read_text(text_file)
        texts = {name: text}
    asked = [] if questions is None else read_questions(None if questions == BUILT_IN else Path(questions))
    path = resolve_gguf(model)
    # The last number of trials is for all distances that follow.
    passkeys = zip(distances or (), chain(trials, repeat(trials[-1])), strict=False)
    tasks = [RecallTask("passkey", distance, count) for distance, count in passkeys]
    windows = [distance.tokens(path) for distance in recall_distances or ()]
    tasks += tasks_at(windows, cases, recall_tasks)
    found = evaluate_model(
        path,
        resolve_gguf(base),
        texts,
        max_tokens=tokens,
        context=context,
        spikes=spikes or (None,),
        tasks=Tasks(tuple(asked), tuple(tasks)),
        n_threads=threads,
        finished=Finished(parts),
    )
    table = evaluation_table(found)
    if markdown is not None:
        with atomic_output(markdown) as partial:
            tables = [table, recall_table(found)] if found.base.recall else [table]
            partial.write_text("\n".join(each.markdown() for each in tables), encoding="utf-8")

    def show(console: Console) -> None:
        for quality in (run.quality for run in found.runs):
            console.print(
                f"{quality.model}: perplexity {quality.perplexity:.3f}, base {quality.base_perplexity:.3f}, "
                f"ratio {quality.ratio:.4f} ± {quality.ratio_error:.4f}, KL {quality.kl:.4f}, "
                f"same first choice {quality.top1:.1%}  ({quality.text}, {quality.tokens} tokens)",
                highlight=False,
                soft_wrap=True,
            )
        if len(table.rows) > 3 or len(found.runs) > 1:
            console.print()
            console.print(table)
        if found.base.recall:
            console.print()
            console.print(recall_table(found))

    emit(found, json_target, show)
