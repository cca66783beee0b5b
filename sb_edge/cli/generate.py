"""`sb-edge generate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sb_edge.cli.options import sampling_options, session_options
from sb_edge.cli.spike_options import run_spikes_options
from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.generation import Generation
from sb_edge.runtime.open import text_session
from sb_edge.runtime.sampling import Sampling


@click.command()
@click.argument("model")
@click.option("-p", "--prompt", required=True, help="The text to continue; - reads standard input.")
@click.option(
    "--load-state", type=click.Path(path_type=Path), help="Append the prompt to what --save-state saved."
)
@click.option("--save-state", type=click.Path(path_type=Path), help="Save the state after the last token.")
@click.option("--stats/--no-stats", default=True, help="Print tokens per second to standard error.")
@sampling_options
@session_options
@run_spikes_options
def command(
    model: str,
    prompt: str,
    load_state: Path | None,
    save_state: Path | None,
    stats: bool,
    n_predict: int,
    temp: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    repeat_last_n: int,
    seed: int | None,
    context: int,
    threads: int | None,
    kv_type: str,
    spikes: float | None,
) -> None:
    """Continue a prompt.

    MODEL is a GGUF, `default` or `default-base`. The text goes to standard output as it is generated.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    sampling = Sampling(temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed)
    with text_session(
        resolve_gguf(model), n_ctx=context, n_threads=threads, kv_type=kv_type, spikes=spikes
    ) as session:
        seen = session.load(load_state) if load_state else []
        tokens = session.model.tokenize(prompt, add_special=not seen)
        generation = Generation(session, tokens, sampling, n_predict=n_predict)
        for piece in generation:
            click.echo(piece, nl=False)
        click.echo()
        if save_state:
            generation.evaluate_rest()
            session.save(save_state, [*seen, *tokens, *generation.tokens])
        if stats:
            click.echo(str(generation.stats), err=True)
