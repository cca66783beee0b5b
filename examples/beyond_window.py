"""What do the GLA states carry beyond the window?  python beyond_window.py BASE STUDENT --window 256

STUDENT is a checkpoint's folder, from `sb-edge distill` or `sb-edge transplant`; BASE has its tokenizer. The
student answers as it is, and with GLA states made anew from the last window alone. `--parts` keeps finished
measurements.
"""

from pathlib import Path
from statistics import fmean

import click
from rich.console import Console

from sb_edge.convert.checkpoint.base_model import open_base
from sb_edge.distill.base import use_fused_attention
from sb_edge.distill.carried import CarriedScore, carried_score, set_window
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.evaluate.evaluation_table import points
from sb_edge.evaluate.finished import Finished
from sb_edge.evaluate.paired import paired_difference
from sb_edge.evaluate.retrieval import SEED, recall_tasks
from sb_edge.models.registry import resolve_base
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.output import json_fields
from sb_edge.util.table import Table
from sb_edge.util.user_cache import remembered_sha256


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("student", type=click.Path(path_type=Path))
@click.option("--window", type=click.IntRange(1), help="Tokens of the window.  [default: the student's]")
@click.option("--distances", default="1.5,3", help="Tokens before the question, in windows.")
@click.option("--cases", type=click.IntRange(1), default=50, help="Cases per task and distance.")
@click.option("--parts", type=click.Path(path_type=Path), help="File of finished measurements (JSON).")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table to this file.")
def main(
    base: Path,
    student: Path,
    window: int | None,
    distances: str,
    cases: int,
    parts: Path | None,
    markdown: Path | None,
) -> None:
    """Print one row per task and distance."""
    model = SpikingBrain.from_checkpoint(student)
    use_fused_attention(model)
    window = window or model.config.sliding_window
    set_window(model, window)
    encode = Tokenizer(open_base(resolve_base(base))).encode
    finished = Finished(parts)
    weights = remembered_sha256(*sorted(student.glob("*.safetensors")))
    table = Table(
        "task",
        "tokens",
        "as it is",
        "anew",
        "difference",
        "log p",
        "gain",
        title=f"{student}: GLA states of all of the text, or of the last {window} tokens alone",
        notes=["difference: in points; gain: of an answer's log p by the states, nats; 95 % intervals."],
        gap=1,
    )
    lengths = [round(float(distance) * window) for distance in distances.split(",")]
    for task in recall_tasks(lengths, cases, ("passkey", "dictionary-5", "dictionary-10", "facts")):
        score = finished.take(
            {"measure": "beyond", "student": weights, "window": window, "seed": SEED, **json_fields(task)},
            CarriedScore,
            lambda task=task: carried_score(model, task, encode, window),
        )
        gain, error = score.gain
        table.add(
            f"{task.name} ({task.trials})",
            str(task.distance),
            *(f"{fmean(hits):.0%}" for hits in (score.hits, score.anew_hits)),
            points(paired_difference(score.hits, score.anew_hits)),
            f"{fmean(score.log_p):.2f}",
            f"{gain:+.2f} ± {1.96 * error:.2f}",
        )
    Console().print(table)
    if markdown is not None:
        markdown.write_text(table.markdown(), encoding="utf-8")


main()
