"""The command line. Each command lives in its own module, imported when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from sb_edge import __version__
from sb_edge.util.errors import SbEdgeError, printable
from sb_edge.util.mapped_files import exit_on_bus_error

# Names, which are also those of the modules, and one-line helps. The help stands here so that
# `sb-edge --help` imports no command; a test keeps it equal to the command's own.
COMMANDS = {
    "engine": "Build, find, describe and change the patched llama.cpp.",
    "init": "Make a random-weight checkpoint in the public layout.",
    "transplant": "Turn a Llama- or Qwen2-shaped model into SpikingBrain.",
    "upcycle": "Turn a checkpoint's FFNs into mixtures of experts.",
    "layers": "Measure what each attention layer of a base does for retrieval.",
    "distill": "Train a SpikingBrain student of a Llama- or Qwen2-shaped base.",
    "convert": "Convert a SpikingBrain checkpoint to GGUF.",
    "quantize": "Quantize a GGUF with llama-quantize.",
    "sparsify": "Copy a GGUF with a sparse layout for decoding.",
    "spikes": "Set, tune, count, draw and sweep a model's spikes.",
    "inspect": "Show a GGUF's architecture, layers, tensors and memory needs.",
    "models": "List the built-in models.",
    "generate": "Continue a prompt.",
    "chat": "Chat with a model; its state is kept between turns.",
    "parity": "Compare the engine with the reference or with recorded logits.",
    "eval": "Measure how well a model predicts a text, beside its base.",
    "run": "Run a tool of the engine: sb-edge run llama-bench ...",
    "bench": "Measure speed and memory.",
    "device": "Measure and chat on phones and boards, by adb or ssh.",
    "selftest": "Check the benchmark, the memory forecast and the operators.",
    "demo": "Convert, quantize, chat and measure the default model.",
}


@contextmanager
def _closed_pipe() -> Iterator[None]:
    """Exit as SIGPIPE would when the reader of the output has gone; click, and rich, exit with 1."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as stop:
        if not isinstance(stop, BrokenPipeError) and not isinstance(stop.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sb_edge.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _closed_pipe():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _closed_pipe():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="sb-edge")
@click.option("--debug", is_flag=True, help="Show tracebacks and the engine's own log.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """SpikingBrain language models on ordinary CPUs.

    Wherever a command expects a GGUF, the name of a built-in model will do (see `sb-edge models`); a file
    of that name is ./NAME. Numbers of tokens take k, M and G, powers of 1024: 64k is 65536.
    """
    ctx.obj = {"debug": debug}
    if debug:
        os.environ["SB_EDGE_DEBUG"] = "1"


def main(args: list[str] | None = None) -> Any:
    """Run the command line: one line per error.

    Exits with 1 for bad input, 2 for bad usage, 130 for Ctrl-C, and 141 (SIGPIPE) when the reader of the
    output, such as head, has gone.
    """
    exit_on_bus_error()
    try:
        return cli.main(args=args, prog_name="sb-edge", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except SbEdgeError as error:
        _show_traceback()
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except MemoryError:
        _fail("not enough memory; use a smaller model or context, or raise the limit (ulimit -v)")
    except ImportError as error:
        reason = str(error).strip().splitlines()[-1:]  # numpy's begins with a page of advice
        _fail(f"{error.name or 'a library'} cannot be loaded: {''.join(reason)}")


def _fail(problem: str) -> NoReturn:
    _show_traceback()
    click.echo(f"error: {printable(problem)}", err=True)
    sys.exit(1)


def _show_traceback() -> None:
    if os.environ.get("SB_EDGE_DEBUG"):
        traceback.print_exc()
