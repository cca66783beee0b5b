"""`sb-edge demo`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.options import threads_option
from sb_edge.cli.params import TokenCounts


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
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
    from sb_edge.cli.demonstration import run_demo

    run_demo(output, depths=depths, n_threads=threads)
