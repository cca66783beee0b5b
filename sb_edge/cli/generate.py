"""`sb-edge generate`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.file_options import FileCommand, OutputFile
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
from sb_edge.util.errors import StateError


@click.command(cls=FileCommand)
@model_argument()
@prompt_options
@click.option(
    "--no-parse-special", "plain", is_flag=True, help="Read special tokens in the prompt as ordinary text."
)
@click.option("--load-state", type=PATH, help="Continue a state of --save-state.")
@click.option(
    "--save-state", type=OutputFile(replaces="load_state"), help="Save the state after the last token."
)
@click.option("--stats/--no-stats", default=True, help="Print tokens per second to standard error.")
@stopping_options
@sampling_options
@loading_options
@verbose_option
def command(
    model: str,
    prompt: str,
    plain: bool,
    load_state: Path | None,
    save_state: Path | None,
    stats: bool,
    stopping: Stopping,
    sampling: Sampling,
    loading: Loading,
) -> None:
    """Continue a prompt.

    MODEL is a GGUF or a built-in model. The text goes to standard output as it is generated, without the
    prompt.
    """
    with text_session(resolve_gguf(model), loading) as session:
        saved = session.load_saved(load_state) if load_state else None
        seen, pending = (saved.tokens, saved.pending) if saved else ([], [])
        before = [*seen, *pending]
        after = before[-1] if before else None
        tokens = [*pending, *session.model.tokenize(prompt, parse_special=not plain, after=after)]
        if saved and not tokens:
            raise StateError(
                "the text has ended, so nothing follows it", path=load_state, hint="give a prompt to continue"
            )
        generation = Generation(session, tokens, sampling, history=seen, stopping=stopping)
        try:
            for piece in generation:
                click.echo(piece, nl=False)
            click.echo()
        finally:
            if save_state and generation.has_read_prompt:
                # The last token has not been evaluated: its logits are where the text goes on.
                whole, count = [*seen, *tokens, *generation.tokens], len(seen) + generation.seen
                session.save(save_state, whole[:count], pending=whole[count:])
        if stats:
            click.echo(str(generation.stats), err=True)
