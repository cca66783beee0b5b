"""`sb-edge bench`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sb_edge.cli.options import KV_TYPE_NAMES, json_option, threads_option
from sb_edge.cli.spike_options import SpikeK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sb_edge.bench.plan import BenchModel, DecodeSettings
    from sb_edge.bench.results import Row


class Depths(click.ParamType):
    """Tokens in the context, separated by commas: `0,4096,64k` (k: 1024)."""

    name = "depths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The depths as integers; fails as click's own types do."""
        if isinstance(value, tuple):
            return value
        found = [
            re.fullmatch(r"(\d{1,9})(k?)", part.strip(), re.ASCII | re.IGNORECASE)
            for part in value.split(",")
        ]
        if not all(found):
            self.fail(f"{value!r} is not a list such as 0,4096,64k", param, ctx)
        return tuple(int(match[1]) * (1024 if match[2] else 1) for match in found if match)


class KvTypes(click.ParamType):
    """Types of a cache, separated by commas: `f16,q8_0`."""

    name = "types"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names; fails as click's own types do."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip().lower() for part in value.split(","))
        unknown = next((name for name in names if name not in KV_TYPE_NAMES), None)
        if unknown is not None:
            self.fail(f"unknown type {unknown!r}; choose from {', '.join(KV_TYPE_NAMES)}", param, ctx)
        return names


def _measuring_options(command: Any) -> Any:
    """How to measure: what `bench decode` and `bench fill` have in common."""
    for option in (
        threads_option,
        click.option(
            "--flash-attn",
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            show_default=True,
            help="Flash attention.",
        ),
        click.option(
            "--type-v", type=KvTypes(), default="f16", show_default=True, help="Types of cached values."
        ),
        click.option(
            "--type-k", type=KvTypes(), default="f16", show_default=True, help="Types of cached keys."
        ),
        click.option(
            "-r",
            "--repetitions",
            type=click.IntRange(1),
            default=5,
            show_default=True,
            help="Times to decode, each from the same depth.",
        ),
        click.option(
            "-n",
            "--n-gen",
            type=click.IntRange(1),
            default=32,
            show_default=True,
            help="Tokens to decode each time.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def command() -> None:
    """Measure speed and memory."""


@command.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "-d",
    "--depths",
    type=Depths(),
    default="0,1024,4096",
    show_default=True,
    help="Tokens in the context before decoding, separated by commas; 64k is 65536.",
)
@click.option(
    "--baseline",
    "baselines",
    type=click.Choice(["base", "llama-1b", "lfm2-1.2b", "rwkv7-1.5b", "none"]),
    multiple=True,
    help="Also measure this model.  [default: base beside `default`, llama-1b beside `1b`]",
)
@click.option(
    "--fill",
    type=click.Choice(["auto", "real", "synthetic"]),
    default="auto",
    show_default=True,
    help="How a Transformer gets to its depth; auto: a real prefill up to 4096 tokens.",
)
@_measuring_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON Lines file: every row is added at once, and finished rows in it are not measured again.",
)
@json_option
@click.option("--csv", type=click.Path(dir_okay=False, path_type=Path), help="Write CSV.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write a Markdown table.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a plot: .png, .svg or .pdf."
)
def decode(
    models: tuple[str, ...],
    depths: tuple[int, ...],
    baselines: tuple[str, ...],
    fill: str,
    n_gen: int,
    repetitions: int,
    type_k: tuple[str, ...],
    type_v: tuple[str, ...],
    flash_attn: str,
    threads: int | None,
    output: Path | None,
    json_target: str | None,
    csv: Path | None,
    markdown: Path | None,
    plot: Path | None,
) -> None:
    """Decode speed over depth, against the memory bandwidth.

    MODEL is a GGUF, `default`, `default-base`, `1b` (preset 1b), or a model of its size to compare it with:
    `llama-1b`, `lfm2-1.2b` or `rwkv7-1.5b` (shapes of Llama-3.2-1B, LFM2-1.2B and RWKV7-World-1.5B). Those
    four have random weights in Q4_0 and are made on first use. Without one, `default` is measured. Several
    cache types are measured in turn: --type-k f16,q8_0 --type-v f16,q8_0.
    """
    from sb_edge.bench.decode import run_decode
    from sb_edge.bench.results import write_csv, write_markdown
    from sb_edge.bench.tables import rich_table
    from sb_edge.output import emit

    settings = _settings(depths, threads, n_gen, repetitions, type_k, type_v, flash_attn, fill)
    _require_folders(csv, markdown, plot, None if json_target in (None, "-") else Path(json_target))
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"{plot.name!r} does not end in .png, .svg or .pdf", param_hint="--plot")
    rows = run_decode(_models(models or ("default",), baselines), settings, output=output, on_row=_show_row)
    if csv is not None:
        write_csv(rows, csv)
    if markdown is not None:
        write_markdown(rows, markdown)
    if plot is not None:
        from sb_edge.bench.plot import save_plot

        save_plot(rows, plot)
    emit([row.to_json() for row in rows], json_target, lambda console: console.print(rich_table(rows)))


@command.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "-d", "--depths", type=Depths(), default="4096", show_default=True, help="Tokens in the context."
)
@_measuring_options
@json_option
def fill(
    models: tuple[str, ...],
    depths: tuple[int, ...],
    n_gen: int,
    repetitions: int,
    type_k: tuple[str, ...],
    type_v: tuple[str, ...],
    flash_attn: str,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Check the synthetic fill of a Transformer against a real prefill."""
    from sb_edge.bench.tables import rich_table
    from sb_edge.bench.validate import validate_fill
    from sb_edge.output import emit

    settings = _settings(depths, threads, n_gen, repetitions, type_k, type_v, flash_attn, "real")
    checks = validate_fill(_models(models, ("none",)), settings, on_row=_show_row)

    def render(console: Console) -> None:
        console.print(rich_table([row for check in checks for row in (check.real, check.synthetic)]))
        for check in checks:
            console.print(f"{check.real.model} {check.real.label}: synthetic / real = {check.ratio:.3f}")

    emit([check.to_json() for check in checks], json_target, render)


@command.command()
@click.option(
    "--size",
    "size_gib",
    type=click.FloatRange(1),
    default=2.0,
    show_default=True,
    help="GiB of the checkpoint.",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Times to convert and copy.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0", "auto"]),
    default="auto",
    show_default=True,
    help="Type of the GGUF.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to work; it takes three times the size."
)
@json_option
def convert(
    size_gib: float, repetitions: int, outtype: str, folder: Path | None, json_target: str | None
) -> None:
    """Conversion speed against plain copying, and its memory."""
    from dataclasses import asdict

    from sb_edge.bench.convert_speed import run
    from sb_edge.output import emit, format_bytes

    results = run(size_gib, repetitions=repetitions, outtype=outtype, folder=folder)

    def render(console: Console) -> None:
        for result in results:
            console.print(
                f"{format_bytes(result.size_bytes)}: cp {result.copy_seconds:.2f} s, "
                f"convert {result.convert_seconds:.2f} s, {result.ratio:.0%} of the speed of cp, "
                f"peak RSS {format_bytes(result.peak_rss_bytes)}",
                highlight=False,
            )

    emit([{**asdict(result), "ratio": result.ratio} for result in results], json_target, render)


@command.command()
@click.argument("model", default="default")
@click.option("--spike-k", type=SpikeK(), help="With this k.  [default: as the file says, else 3]")
@click.option(
    "-p", "--n-prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of the prompt."
)
@click.option(
    "-n", "--n-gen", type=click.IntRange(1), default=64, show_default=True, help="Tokens to decode after it."
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Pairs of measurements.",
)
@threads_option
@json_option
def spikes(
    model: str,
    spike_k: float | None,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Prompt and decode speed with spikes against without.

    MODEL is a GGUF or a name that `bench decode` takes. The same weights are measured in turns.
    """
    from rich.table import Table

    from sb_edge.bench.baselines import resolve_model
    from sb_edge.bench.spike_speed import measure_spike_speed
    from sb_edge.output import emit

    results = measure_spike_speed(
        resolve_model(model).path,
        k=spike_k,
        n_prompt=n_prompt,
        n_gen=n_gen,
        repetitions=repetitions,
        n_threads=threads,
    )

    def render(console: Console) -> None:
        table = Table(title=f"{model}: median tokens per second, {repetitions} pairs")
        for heading in ("test", "without spikes", "with spikes", "with / without", "quartiles"):
            table.add_column(heading, justify="right")
        for result in results:
            low, high = result.quartiles
            table.add_row(
                result.label,
                f"{result.without.median_ts:.2f}",
                f"{result.spiking.median_ts:.2f}",
                f"{result.ratio:.3f}",
                f"{low:.3f} to {high:.3f}",
            )
        console.print(table)

    emit([result.to_json() for result in results], json_target, render)


def _require_folders(*files: Path | None) -> None:
    """Find out before measuring for minutes, not after, that a result has nowhere to go."""
    from sb_edge.errors import OutputError

    for file in files:
        if file is not None and not file.parent.is_dir():
            raise OutputError("the folder does not exist", path=file.parent, hint="create it first")


def _models(names: Sequence[str], baselines: Sequence[str]) -> list[BenchModel]:
    """The models to measure, baselines last; a name that comes twice is measured once."""
    from sb_edge.bench.baselines import BASELINES, default_baselines, resolve_model

    chosen = baselines or default_baselines(names)
    if "none" in chosen and len(chosen) > 1:
        raise click.UsageError("--baseline none goes with no other --baseline")
    added = [BASELINES[name] for name in chosen if name != "none"]
    return [resolve_model(name) for name in dict.fromkeys([*names, *added])]


def _settings(
    depths: tuple[int, ...],
    threads: int | None,
    n_gen: int,
    repetitions: int,
    type_k: tuple[str, ...],
    type_v: tuple[str, ...],
    flash_attn: Any,
    fill: Any,
) -> DecodeSettings:
    from sb_edge.bench.plan import DecodeSettings
    from sb_edge.cpu import default_threads

    count = max(len(type_k), len(type_v))
    if {len(type_k), len(type_v)} - {1, count}:
        raise click.UsageError("--type-k and --type-v name different numbers of types; one each, or as many")
    return DecodeSettings(
        depths=depths,
        n_threads=threads or default_threads(),
        n_gen=n_gen,
        repetitions=repetitions,
        cache_types=tuple(zip(_repeat(type_k, count), _repeat(type_v, count), strict=True)),
        flash_attn=flash_attn,
        fill=fill,
    )


def _repeat(types: tuple[str, ...], count: int) -> tuple[str, ...]:
    return types if len(types) == count else types * count


def _show_row(row: Row, done: int, total: int) -> None:
    from sb_edge.bench.tables import format_speed
    from sb_edge.progress import stderr

    cache = f"{row.type_k}/{row.type_v}"
    stderr.print(
        f"[{done}/{total}] {row.model} {row.label}, {cache} cache, {row.fill} fill: {format_speed(row)} t/s",
        highlight=False,
        markup=False,
    )
