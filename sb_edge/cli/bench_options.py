"""What the commands of `sb-edge bench` that measure over depth share: options, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sb_edge.bench.rows.compare import comparison_table, first_against_others
from sb_edge.bench.rows.results import write_csv, write_markdown
from sb_edge.bench.rows.row_tables import format_speed, results_table
from sb_edge.bench.speed.plan import BenchModel
from sb_edge.bench.speed.run import TimeBudget, run
from sb_edge.cli.file_options import OutputFile
from sb_edge.cli.options import (
    FLASH_ATTN_CHOICE,
    KV_TYPE_NAMES,
    cache_type_option,
    choice_option,
    flash_attn_option,
    gathered,
    integer_option,
    json_option,
    option_list,
    threads_option,
    tokens_option,
    ubatch_option,
)
from sb_edge.cli.params import CommaSeparated, OneOf, Real, TokenCounts
from sb_edge.models.registry import BASELINES, default_baselines, resolve_gguf
from sb_edge.system.cpu import default_threads
from sb_edge.util.output import emit
from sb_edge.util.progress import note

if TYPE_CHECKING:
    from sb_edge.bench.rows.row import Row
    from sb_edge.bench.speed.plan import BenchSettings, FillChoice
    from sb_edge.memory.forecast import FlashChoice

Command = TypeVar("Command", bound=Callable[..., Any])


KV_TYPES = CommaSeparated(OneOf(KV_TYPE_NAMES, "unknown type {!r}; choose from"), "types")


def depths_option(default: str) -> Callable[[Command], Command]:
    """`--depths`."""
    return click.option(
        "-d",
        "--depths",
        type=TokenCounts(),
        default=default,
        show_default=True,
        help="Context depths in tokens: 0,4096,64k,1M.",
    )


def n_gen_option(command: Command) -> Command:
    """`--n-gen`."""
    return tokens_option("-n", "--n-gen", default=32, help="Tokens to decode per repetition.")(command)


def repetitions_option(default: int) -> Callable[[Command], Command]:
    """`--repetitions`."""
    return integer_option(
        "-r", "--repetitions", default=default, help="Repetitions, each from the same depth."
    )


warm_up_option = tokens_option("--warm-up", default=1, help="Warm-up tokens to decode before measuring.")

fill_option = choice_option(
    "--fill",
    ["auto", "real", "synthetic"],
    "auto",
    "Context fill of a Transformer; auto: real prefill up to 4096 tokens.",
)


def pair_options(n_prompt: int, n_gen: int) -> Callable[[Command], Command]:
    """`--n-prompt`, `--n-gen` and `--repetitions` of interleaved pairs."""
    return option_list(
        tokens_option("-p", "--n-prompt", default=n_prompt, help="Prompt tokens."),
        tokens_option("-n", "--n-gen", default=n_gen, help="Tokens to decode after the prompt."),
        integer_option("-r", "--repetitions", default=10, help="Number of interleaved pairs."),
    )


@dataclass(frozen=True)
class Measuring:
    """How to measure: the values of `measuring_options`."""

    repetitions: int
    type_k: tuple[str, ...]
    type_v: tuple[str, ...]
    flash_attn: FlashChoice
    warm_up: int
    n_ubatch: int
    threads: int | None

    def settings(self) -> dict[str, Any]:
        """The fields of `BenchSettings` that these options decide."""
        return {
            "n_threads": self.threads or default_threads(),
            "repetitions": self.repetitions,
            "cache_types": cache_types(self.type_k, self.type_v),
            "flash_attn": self.flash_attn,
            "n_warmup": self.warm_up,
            "n_ubatch": self.n_ubatch,
        }


@dataclass(frozen=True)
class Running:
    """Which baselines, how long, how many models at once, where to: the values of `running_options`."""

    baselines: tuple[str, ...]
    baseline_flash_attn: FlashChoice | None
    fill: FillChoice
    one_at_a_time: bool
    time_budget: float | None
    output: Path | None
    keep_contexts: bool
    json_target: str | None
    csv: Path | None
    markdown: Path | None
    plot: Path | None


def cache_options(command: Command) -> Command:
    """`--cache-type-k`, `--cache-type-v` and `--flash-attn`."""
    return option_list(
        cache_type_option("k", KV_TYPES),
        cache_type_option("v", KV_TYPES),
        flash_attn_option,
    )(command)


def measuring_options(repetitions: int) -> Callable[[Command], Command]:
    """The command takes `measuring`, a `Measuring`."""
    return gathered(
        "measuring",
        Measuring,
        repetitions_option(repetitions),
        cache_options,
        warm_up_option,
        ubatch_option,
        threads_option,
    )


def running_options(command: Command) -> Command:
    """The command takes `running`, a `Running`."""
    return gathered(
        "running",
        Running,
        click.option(
            "--baseline",
            "baselines",
            type=click.Choice([*BASELINES, "none"]),
            multiple=True,
            help="Baseline to measure as well.  [default: base for `default`, llama-1b for `1b`]",
        ),
        click.option(
            "--baseline-flash-attn",
            type=FLASH_ATTN_CHOICE,
            help="Flash attention of the baselines.  [default: as --flash-attn]",
        ),
        fill_option,
        click.option(
            "--one-at-a-time",
            is_flag=True,
            help="Load one model at a time instead of interleaving them.",
        ),
        click.option(
            "--time-budget",
            type=Real(0),
            metavar="SECONDS",
            help="Stop starting new measurements after SECONDS; list the skipped ones.",
        ),
        click.option(
            "-o",
            "--output",
            type=OutputFile(),
            help="JSON Lines file to append rows to; finished rows are not measured again.",
        ),
        click.option(
            "--keep-contexts",
            is_flag=True,
            help="Cache prefilled contexts in OUTPUT.contexts for later runs.",
        ),
        json_option,
        click.option("--csv", type=OutputFile(), help="Write CSV."),
        click.option("--markdown", type=OutputFile(), help="Write a Markdown table."),
        click.option("--plot", type=OutputFile(), help="Write a plot: .png, .svg or .pdf."),
    )(command)


def measure_and_show(names: Sequence[str], settings: BenchSettings, running: Running) -> None:
    """Run the benchmark that `settings` describe; print and write what it measured."""
    if running.keep_contexts and running.output is None:
        raise click.UsageError("--keep-contexts needs --output, beside which it keeps them")
    plot, json_target = running.plot, running.json_target
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"{plot.name!r} does not end in .png, .svg or .pdf", param_hint="--plot")
    models = models_of(names, running.baselines, running.baseline_flash_attn)
    budget = TimeBudget(running.time_budget)
    rows = run(
        models,
        settings,
        output=running.output,
        on_row=show_row,
        budget=budget,
        together=not running.one_at_a_time,
        keep_contexts=running.keep_contexts,
    )
    if running.csv is not None:
        write_csv(rows, running.csv)
    if running.markdown is not None:
        write_markdown(rows, running.markdown)
    if plot is not None and rows:
        from sb_edge.bench.report.curves import save_plot

        save_plot(rows, plot)
    _say_what_is_left_out(budget, running.output)

    def render(console: Any) -> None:
        if rows:
            console.print(results_table(rows))
        comparisons = first_against_others(rows)
        if comparisons:
            console.print()
            console.print(comparison_table(comparisons))

    emit(rows, json_target, render)


def resolve_model(name: str) -> BenchModel:
    """As `resolve_gguf`, with the name under which a benchmark shows it."""
    path = resolve_gguf(name)
    return BenchModel(path.stem if Path(name).suffix == ".gguf" else name, path)


def models_of(
    names: Sequence[str], baselines: Sequence[str], flash_attn: FlashChoice | None = None
) -> list[BenchModel]:
    """The models to measure, then baselines, with a flash attention of their own if so told.

    A name that comes twice is measured once.
    """
    chosen = baselines or default_baselines(names)
    if "none" in chosen and len(chosen) > 1:
        raise click.UsageError("--baseline none goes with no other --baseline")
    models = dict.fromkeys(names)
    added = dict.fromkeys(
        BASELINES[name] for name in chosen if name != "none" and BASELINES[name] not in models
    )
    return [
        *map(resolve_model, models),
        *(replace(resolve_model(name), flash_attn=flash_attn) for name in added),
    ]


def cache_types(type_k: Sequence[str], type_v: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of types for keys and values; one of a side goes with all of the other."""
    count = max(len(type_k), len(type_v))
    if {len(type_k), len(type_v)} - {1, count}:
        raise click.UsageError("--cache-type-k and --cache-type-v need the same number of types, or one")
    return tuple(zip(_repeat(type_k, count), _repeat(type_v, count), strict=True))


def _repeat(types: Sequence[str], count: int) -> Sequence[str]:
    return types if len(types) == count else [*types] * count


def show_row(row: Row, done: int, total: int) -> None:
    """One line on standard error for a row that was measured just now."""
    cache = f"{row.type_k}/{row.type_v}"
    how = "not measured" if row.fill == "fitted" else f"{row.fill} fill"
    note(f"[{done}/{total}] {row.model} {row.label}, {cache} cache, {how}: {format_speed(row)} t/s")


def _say_what_is_left_out(budget: TimeBudget, output: Path | None) -> None:
    if not budget.left_out:
        return
    advice = "the same command continues" if output else "with --output a later run would continue"
    note(f"time budget spent; left out: {', '.join(budget.left_out)}; {advice}")
