"""`sb-edge chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sb_edge.cli.options import sampling_options, session_options
from sb_edge.cli.spike_options import run_spikes_options
from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.conversation import Chat
from sb_edge.runtime.open import text_session
from sb_edge.runtime.sampling import Sampling

if TYPE_CHECKING:
    from sb_edge.runtime.conversation import Chat


@click.command()
@click.argument("model")
@click.option(
    "-p", "--prompt", "prompts", multiple=True, help="Say this instead of asking; repeat it for more turns."
)
@click.option("--system", help="A system message.")
@click.option(
    "--stats/--no-stats", default=True, help="Print tokens per second after each answer, to standard error."
)
@sampling_options
@session_options
@run_spikes_options
def command(
    model: str,
    prompts: tuple[str, ...],
    system: str | None,
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
    """Talk with a model; its state is kept between turns.

    MODEL is a GGUF with a chat template, `default` or `default-base`. Only what is new in a turn is
    evaluated. At the prompt, /clear begins anew and /exit or Ctrl-D ends; Ctrl-C breaks an answer off.
    """
    sampling = Sampling(temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed)
    with text_session(
        resolve_gguf(model), n_ctx=context, n_threads=threads, kv_type=kv_type, spikes=spikes
    ) as session:
        chat = Chat(session, sampling, system, n_predict)
        if prompts:
            for prompt in prompts:
                click.secho(f"> {prompt}", bold=True)
                _answer(chat, prompt, stats)
        else:
            _converse(chat, stats)


def _converse(chat: Chat, stats: bool) -> None:
    click.echo("/clear begins anew, /exit ends", err=True)
    while True:
        try:
            text = click.prompt(">", prompt_suffix=" ", err=True).strip()
        except click.Abort:
            # click makes no difference between Ctrl-D and Ctrl-C here: both end the conversation.
            click.echo(err=True)
            return
        if text == "/exit":
            return
        if text == "/clear":
            chat.clear()
        elif text:
            try:
                _answer(chat, text, stats)
            except KeyboardInterrupt:
                click.echo(err=True)


def _answer(chat: Chat, text: str, stats: bool) -> None:
    generation, pieces = chat.say(text)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
    finally:
        pieces.close()
    click.echo()
    if stats:
        click.secho(str(generation.stats), err=True, dim=True)
