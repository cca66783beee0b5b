"""`sb-edge engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sb_edge.cli.options import json_option

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.engine import Engine


def _variant(portable: bool, debug: bool) -> str | None:
    if portable and debug:
        raise click.UsageError("--portable and --debug exclude each other")
    return "portable" if portable else "debug" if debug else None


_portable = click.option(
    "--portable", is_flag=True, help="For any CPU of this architecture; what it can do is found at run time."
)
_debug = click.option("--debug", is_flag=True, help="With address and undefined-behaviour sanitizers.")


@click.group("engine")
def command() -> None:
    """Build, find and describe the patched llama.cpp.

    SB_EDGE_CACHE sets the cache folder, SB_EDGE_ENGINE names a prefix to use instead of the cache's,
    SB_EDGE_ENGINE_VARIANT (native, portable, debug) chooses the variant that all commands use.
    """


@command.command("build")
@_portable
@_debug
@click.option(
    "--jobs", "-j", type=click.IntRange(1), help="Compilers at once; by default as CPUs and memory allow."
)
@click.option("--force", is_flag=True, help="Build again even if it is in the cache.")
def build(portable: bool, debug: bool, jobs: int | None, force: bool) -> None:
    """Build the engine, or find it in the cache; print its folder.

    Fetches the pinned source through pip (SHA-256 checked), applies the patches, compiles with cmake and
    ninja from PyPI. About seven minutes on two cores, once. CC and CXX choose the compilers; CFLAGS and the
    like are ignored.
    """
    from sb_edge.engine import build_engine

    engine = build_engine(_variant(portable, debug), jobs, force=force)
    click.echo(engine.prefix)


@command.command("info")
@_portable
@_debug
@json_option
def info(portable: bool, debug: bool, json_target: str | None) -> None:
    """Say what the engine was built from and with.

    JSON fields: prefix, key, variant, package, version, sha256, commit, ggml_version, licence, patches and
    overlay (name to SHA-256), flags, compiler, cpu, cpu_features, system_info, sanitizer_runtime, built_at.
    """
    from sb_edge.engine import find_engine
    from sb_edge.util.output import emit

    engine = find_engine(_variant(portable, debug))
    document = {"prefix": str(engine.prefix), **engine.info.model_dump()}
    emit(document, json_target, lambda console: _render(console, engine))


@command.command("path")
@_portable
@_debug
def path(portable: bool, debug: bool) -> None:
    """Print the engine's folder; its tools (llama-server, llama-imatrix, ...) are in bin/ there."""
    from sb_edge.engine import find_engine

    click.echo(find_engine(_variant(portable, debug)).prefix)


def _render(console: Console, engine: Engine) -> None:
    from rich.table import Table
    from rich.text import Text

    info = engine.info
    rows = {
        "prefix": str(engine.prefix),
        "variant": f"{info.variant}, key {info.key}",
        "source": f"{info.package} {info.version} ({info.licence})",
        "sha256": info.sha256,
        "llama.cpp": f"commit {info.commit[:12]}, ggml {info.ggml_version}",
        "patches": "\n".join(f"{name}  {digest[:12]}" for name, digest in info.patches.items()) or "none",
        "overlay": "\n".join(f"{name}  {digest[:12]}" for name, digest in info.overlay.items()) or "none",
        "flags": "\n".join(flag.removeprefix("-D") for flag in info.flags),
        "compiler": info.compiler,
        "cpu": info.cpu,
        "cpu features": " ".join(info.cpu_features),
        "ggml uses": info.system_info,
        "built": info.built_at,
    }
    if info.sanitizer_runtime:
        rows["in Python"] = f"LD_PRELOAD={info.sanitizer_runtime} ASAN_OPTIONS=detect_leaks=0"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(table)
