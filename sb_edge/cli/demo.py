"""`sb-edge demo`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.bench_options import Depths
from sb_edge.cli.options import threads_option


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder of the report.",
)
@click.option(
    "-d", "--depths", type=Depths(), default="0,2k,8k,16k", show_default=True, help="Depths to measure at."
)
@threads_option
def command(out: Path, depths: tuple[int, ...], threads: int | None) -> None:
    """Convert, quantize, chat and measure the default model.

    This is what `make demo` runs after set-up. Whatever is built or measured already is taken up again.
    """
    from sb_edge.cli.demonstration import run_demo

    run_demo(out, depths=depths, n_threads=threads)
