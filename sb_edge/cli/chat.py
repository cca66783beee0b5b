"""`sb-edge chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from sb_edge.cli.file_options import FileCommand, OutputFile
from sb_edge.cli.generation_options import (
    loading_options,
    sampling_options,
    stopping_options,
    verbose_option,
)
from sb_edge.cli.options import model_argument
from sb_edge.cli.params import PATH
from sb_edge.cli.prompts import read_lines, read_prompt
from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.conversation import Conversation
from sb_edge.runtime.generation import Stopping
from sb_edge.runtime.open import Loading, text_session
from sb_edge.runtime.sampling import Sampling
from sb_edge.util.errors import InferenceError, SbEdgeError

HELP = """/clear        Begin a new conversation
/save FILE    Save the conversation and its state
/load FILE    Load a saved conversation
/help         Show these commands
/exit         End (or Ctrl-D); Ctrl-C stops an answer"""


@click.command(cls=FileCommand)
@model_argument()
@click.option("-p", "--prompt", "prompts", multiple=True, help="Say this instead of asking (repeatable).")
@click.option("-f", "--file", type=PATH, help="Say the text of FILE; - for stdin.")
@click.option("-sys", "--system-prompt", "system", help="System message.")
@click.option("--load-session", type=PATH, help="Continue a saved conversation.")
@click.option(
    "--save-session", type=OutputFile(replaces="load_session"), help="Save the conversation at the end."
)
@click.option("--no-history", is_flag=True, help="Keep no history of typed lines.")
@click.option(
    "--stats/--no-stats",
    default=None,
    help="Print tokens per second after each answer, to standard error.  [default: on a terminal]",
)
@stopping_options
@sampling_options
@loading_options
@verbose_option
def command(
    model: str,
    prompts: tuple[str, ...],
    file: Path | None,
    system: str | None,
    load_session: Path | None,
    save_session: Path | None,
    no_history: bool,
    stats: bool | None,
    stopping: Stopping,
    sampling: Sampling,
    loading: Loading,
) -> None:
    """Chat with a model; its state is kept between turns.

    MODEL is a GGUF with a chat template, or a built-in model. Only the new part of a turn is evaluated.
    Lines can be edited, Alt-Enter begins a new line; /help lists commands. Piped in, each line is a turn;
    piped out, only the answers are printed.
    """
    if system is not None and load_session is not None:
        raise click.UsageError("A saved conversation keeps its system message: drop -sys or --load-session.")
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    show_stats = is_terminal if stats is None else stats
    with text_session(resolve_gguf(model), loading) as session:
        chat = Conversation(session, sampling, system, stopping)
        if load_session is not None:
            chat.load(load_session)
        try:
            if prompts or file is not None:
                for text in [*prompts, *([] if file is None else [read_prompt(file)])]:
                    if is_terminal:
                        click.secho(f"> {text}", bold=True)
                    _answer(chat, text, show_stats)
            elif is_terminal:
                _converse(chat, _typed_lines(no_history), show_stats, keep_on=True)
            else:
                _converse(chat, read_lines(), show_stats)
        finally:
            if save_session is not None:
                chat.save(save_session)


def _typed_lines(no_history: bool) -> Iterator[str]:
    """Lines as they are typed, with editing and a history; ends with Ctrl-D."""
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    prompt: PromptSession[str] = PromptSession(
        history=InMemoryHistory() if no_history else FileHistory(str(_history_file())), key_bindings=keys
    )
    click.echo("/help lists commands, /exit ends", err=True)
    while True:
        try:
            yield prompt.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _history_file() -> Path:
    """The file of typed lines; nobody else may read it."""
    file = Path(platformdirs.user_state_dir("sb-edge")) / "chat-history"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.touch(mode=0o600)
    file.chmod(0o600)  # an earlier one may have been made by another program
    return file


def _converse(chat: Conversation, lines: Iterator[str], stats: bool, *, keep_on: bool = False) -> None:
    """Answer each line.

    Args:
        chat: The conversation.
        lines: Turns of the user, or commands.
        stats: Print tokens per second.
        keep_on: Go on after an error, which somebody reads.
    """
    for line in lines:
        text = line.strip()
        if text == "/exit":
            return
        try:
            if text and not (text.startswith("/") and _command(chat, *text.split(maxsplit=1))):
                _answer(chat, text, stats)
        except KeyboardInterrupt:
            click.echo(err=True)
        except SbEdgeError as error:
            if not keep_on:
                raise
            click.echo(f"error: {error}", err=True)


def _command(chat: Conversation, name: str, argument: str | None = None) -> bool:
    """Carry out a command of the chat and confirm it; False: a question, such as `/etc holds what?`.

    Raises:
        InferenceError: a command without its file, or an unknown command.
    """
    files = {"/save": (chat.save, "saved"), "/load": (chat.load, "loaded")}
    if name == "/help":
        done = HELP
    elif name == "/clear":
        chat.clear()
        done = "new conversation"
    elif name in files:
        if argument is None:
            raise InferenceError(f"{name} needs a file", hint=f"type {name} FILE")
        act, verb = files[name]
        act(Path(argument))
        done = f"{verb} {argument}"
    elif argument is None and name[1:].isalpha():
        raise InferenceError(f"unknown command {name}", hint="/help lists commands")
    else:
        return False
    click.echo(done, err=True)
    return True


def _answer(chat: Conversation, text: str, stats: bool) -> None:
    generation, pieces = chat.say(text)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
    finally:
        pieces.close()
    click.echo()
    if stats:
        click.secho(str(generation.stats), err=True, dim=True)
