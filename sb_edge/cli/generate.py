"""`sb-edge generate`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.generation_options import (
    loading_options,
    sampling_options,
    stopping_options,
    verbose_option,
)
from sb_edge.cli.options import model_argument
from sb_edge.cli.params import PATH
from sb_edge.cli.prompts import prompt_options
from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.generation import Generation, Stopping
from sb_edge.runtime.open import Loading, text_session
from sb_edge.runtime.sampling import Sampling


@click.command()
@model_argument()
@prompt_options
@click.option("--load-state", type=PATH, help="Continue a state of --save-state.")
@click.option("--save-state", type=PATH, help="Save the state after the last token.")
@click.option("--stats/--no-stats", default=True, help="Print tokens per second to standard error.")
@stopping_options
@sampling_options
@loading_options
@verbose_option
def command(
    model: str,
    prompt: str,
    load_state: Path | None,
    save_state: Path | None,
    stats: bool,
    stopping: Stopping,
    sampling: Sampling,
    loading: Loading,
) -> None:
    """Continue a prompt.

    MODEL is a GGUF or a built-in model. The text goes to standard output as it is generated.
    """
    with text_session(resolve_gguf(model), loading) as session:
        seen = session.load(load_state) if load_state else []
        tokens = session.model.tokenize(prompt, add_special=not seen)
        generation = Generation(session, tokens, sampling, stopping=stopping)
        for piece in generation:
            click.echo(piece, nl=False)
        click.echo()
        if save_state:
            generation.evaluate_rest()
            session.save(save_state, [*seen, *tokens, *generation.tokens])
        if stats:
            click.echo(str(generation.stats), err=True)
