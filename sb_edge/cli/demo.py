"""`sb-edge demo`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.options import threads_option


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder of the report.",
)
@click.option("--depths", default="0,2048,8192,16384", show_default=True, help="Depths to measure at.")
@threads_option
def command(out: Path, depths: str, threads: int | None) -> None:
    """Convert, quantize, chat and measure the default model.

    This is what `make demo` runs after set-up. Whatever is built or measured already is taken up again.
    """
    from sb_edge.demo import run_demo

    try:
        wanted = tuple(int(depth) for depth in depths.split(","))
    except ValueError:
        raise click.BadParameter(f"{depths!r} is not a list such as 0,2048", param_hint="--depths") from None
    run_demo(out, depths=wanted, n_threads=threads)
