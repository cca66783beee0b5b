"""`sb-edge eval`."""

from __future__ import annotations

from pathlib import Path

import click

from sb_edge.cli.options import json_option, threads_option
from sb_edge.cli.spike_options import run_spikes_options


@click.command()
@click.argument("model")
@click.option("--base", required=True, help="The GGUF that it was made from; `default-base` for `default`.")
@click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path),
    help="A UTF-8 text that it was not trained on.  [default: a held-out one]",
)
@click.option(
    "--tokens", type=click.IntRange(min=2), default=8192, show_default=True, help="Of the text, at most."
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=16),
    default=2048,
    show_default=True,
    help="Tokens read in one piece; the next begins afresh.",
)
@threads_option
@json_option
@run_spikes_options
def command(
    model: str,
    base: str,
    text_file: Path | None,
    tokens: int,
    context: int,
    threads: int | None,
    json_target: str | None,
    spikes: float | None,
) -> None:
    """Measure how well a model predicts a text, beside its base.

    MODEL is a GGUF or `default`. The ratio of the perplexities says what was lost; KL is the divergence from
    the base's predictions in nats a token.
    """
    from rich.console import Console

    from sb_edge.bench.perplexity import read_text
    from sb_edge.bench.quality import compare_quality
    from sb_edge.models import resolve_gguf
    from sb_edge.output import emit

    text, name = read_text(text_file)
    found = compare_quality(
        resolve_gguf(model),
        resolve_gguf(base),
        text,
        name,
        max_tokens=tokens,
        context=context,
        spikes=spikes,
        n_threads=threads,
    )

    def show(console: Console) -> None:
        console.print(
            f"{found.model}: perplexity {found.perplexity:.3f}, base {found.base_perplexity:.3f}, "
            f"ratio {found.ratio:.4f} ± {found.ratio_error:.4f}, KL {found.kl:.4f}, "
            f"same first choice {found.top1:.1%}  ({found.text}, {found.tokens} tokens)",
            highlight=False,
            soft_wrap=True,
        )

    emit(found.to_json(), json_target, show)
