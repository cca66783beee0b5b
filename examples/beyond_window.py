"""What do the GLA states carry beyond the window?  python beyond_window.py BASE STUDENT --window 256

STUDENT is a checkpoint's folder, from `sb-edge distill` or `sb-edge transplant`; BASE has its tokenizer. The
student answers as it is, and with GLA states made anew from the last window alone. `--parts` keeps finished
measurements.
"""

from pathlib import Path

import click
from rich.console import Console

from sb_edge.convert.checkpoint.base_model import open_base
from sb_edge.distill.base import use_fused_attention
from sb_edge.distill.carried import carried_scores, set_window
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.evaluate.evaluation_table import points
from sb_edge.evaluate.finished import Finished
from sb_edge.evaluate.paired import paired_difference
from sb_edge.evaluate.retrieval import SEED, RetrievalScore, recall_tasks
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
        "log p",
        "anew",
        "log p",
        "difference",
        title=f"{student}: GLA states of all of the text, or of the last {window} tokens alone",
        notes=["difference: in points, with its 95 % interval."],
    )
    lengths = [round(float(distance) * window) for distance in distances.split(",")]
    for task in recall_tasks(lengths, cases, ("passkey", "dictionary-5", "dictionary-10", "facts")):
        as_it_is, anew = finished.take(
            {"measure": "beyond", "student": weights, "window": window, "seed": SEED, **json_fields(task)},
            tuple[RetrievalScore, RetrievalScore],
            lambda task=task: carried_scores(model, task, encode, window),
        )
        cells = [cell for score in (as_it_is, anew) for cell in (f"{score.found:.0%}", f"{score.log_p:.2f}")]
        difference = points(paired_difference(as_it_is.hits, anew.hits))
        table.add(f"{task.name} ({task.trials})", str(task.distance), *cells, difference)
    Console().print(table)
    if markdown is not None:
        markdown.write_text(table.markdown(), encoding="utf-8")


main()
