"""`sb-edge demo`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from sb_edge.arch.layer_map import recurrent_layers
from sb_edge.bench.report.page import Facts, LayerMap, Section, Transcript, Turn, write_report
from sb_edge.bench.rows.row_tables import results_table
from sb_edge.bench.speed.plan import BenchModel, DecodeSettings
from sb_edge.bench.speed.run import run
from sb_edge.cli.options import threads_option
from sb_edge.cli.params import PATH, TokenCounts
from sb_edge.engine import activate, build_engine
from sb_edge.engine.machine import describe_machine
from sb_edge.evaluate.perplexity import held_out_text, perplexity
from sb_edge.gguf.reader import read_header
from sb_edge.models.default_model import BASE_NAME, default, default_base
from sb_edge.runtime.conversation import Conversation
from sb_edge.runtime.generation import Stopping
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Model, Session
from sb_edge.system.cpu import default_threads

QUESTION = "What is the capital of France?"


@click.command()
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("out/demo"),
    show_default=True,
    help="Folder of the report.",
)
@click.option(
    "-d",
    "--depths",
    type=TokenCounts(),
    default="0,2k,8k,16k",
    show_default=True,
    help="Context depths.",
)
@threads_option
def command(output: Path, depths: tuple[int, ...], threads: int | None) -> None:
    """Convert, quantize, chat and measure the default model.

    This is what `make demo` runs after set-up. Whatever is built or measured already is taken up again.
    """
    run_demo(output, depths=depths, n_threads=threads)


def run_demo(folder: Path, *, depths: tuple[int, ...], n_threads: int | None = None) -> Path:
    """Build engine and default model where they are missing, ask one question, measure decoding over depth.

    Args:
        folder: gets report.html and the measurements, which a second run takes up again.
        depths: Context depths of the measurement.
        n_threads: None: as `default_threads`.

    Returns:
        The report.

    Raises:
        SbEdgeError: any step failed.
    """
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("engine")
    engine = activate(build_engine())
    console.print(
        f"llama.cpp {engine.info.commit[:7]}, {len(engine.info.patches)} patches, {engine.info.variant}"
    )

    console.rule("model")
    base, model = default_base(), default()
    recurrent = recurrent_layers(read_header(model))
    console.print(f"{model.name}: {''.join('G' if gla else 'S' for gla in recurrent)}  (G: GLA, S: SWA)")
    qualities = _perplexities(console, {"default": model, "default-base": base}, n_threads)

    console.rule("chat")
    answer = _ask(console, model, n_threads)

    console.rule("decode speed over depth")
    models = [BenchModel("default", model), BenchModel("base", base)]
    settings = DecodeSettings(depths, n_threads or default_threads(), repetitions=3)
    rows = run(
        models,
        settings,
        output=folder / "decode.jsonl",
        on_row=lambda row, done, total: console.print(
            f"{done} of {total}: {row.model} {row.label}, {row.median_ts:.1f} tokens/s"
        ),
    )
    console.print(results_table(rows))

    sections: list[Section] = [
        answer,
        LayerMap(
            "Layers of the default model",
            recurrent,
            f"{BASE_NAME} taught these layers what its attention does; the record of that training is "
            "part of sb-edge.",
        ),
        qualities,
    ]
    report = folder / "report.html"
    write_report(report, rows, describe_machine(engine), sections)
    console.print(f"report: {report}")
    return report


def _perplexities(console: Console, models: dict[str, Path], n_threads: int | None) -> Facts:
    pairs, tokens = [], 0
    for name, path in models.items():
        with Model(path) as loaded:
            measured = perplexity(loaded, held_out_text(), n_threads=n_threads)
        tokens = measured.tokens
        pairs.append((name, f"{measured.value:.2f}"))
        console.print(f"perplexity of {name}: {measured.value:.2f}")
    return Facts(
        "Perplexity", pairs, f"On {tokens} tokens of text written for this project; lower is better."
    )


def _ask(console: Console, path: Path, n_threads: int | None) -> Transcript:
    with Model(path) as model, Session(model, n_ctx=2048, n_threads=n_threads, n_outputs=1) as session:
        chat = Conversation(
            session, Sampling(temperature=0, repeat_penalty=1.1), stopping=Stopping(n_predict=96)
        )
        console.print(f"> {QUESTION}", style="bold", highlight=False)
        generation, pieces = chat.say(QUESTION)
        for piece in pieces:
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        console.print(f"\n{generation.stats}", style="dim", highlight=False)
    turns = [Turn(message["role"], message["content"]) for message in chat.messages]
    return Transcript("One answer", turns, str(generation.stats))
