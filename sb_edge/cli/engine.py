"""`sb-edge engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sb_edge.cli.file_options import FileCommand
from sb_edge.cli.options import choice_option, json_option, option_list
from sb_edge.cli.params import PATH
from sb_edge.engine import build_engine, find_engine
from sb_edge.engine.checkout import checkout as write_checkout
from sb_edge.engine.checkout import refresh_patches
from sb_edge.engine.cross import build_cross
from sb_edge.util.output import emit
from sb_edge.util.table import grid

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.engine import Engine
    from sb_edge.engine.patching import PatchChoice


def _variant(portable: bool, debug: bool) -> str | None:
    if portable and debug:
        raise click.UsageError("--portable and --debug exclude each other")
    return "portable" if portable else "debug" if debug else None


_engine_options = option_list(
    click.option(
        "--portable",
        is_flag=True,
        help="Engine for any CPU of this architecture, with run-time CPU detection.",
    ),
    click.option("--debug", is_flag=True, help="Engine with address and undefined-behaviour sanitizers."),
    choice_option(
        "--patches",
        ["all", "operators", "none"],
        "all",
        "Patches: all, operators (without generic improvements), or none (stock llama.cpp). "
        "SB_EDGE_ENGINE makes other commands use the folder that this prints.",
    ),
)


@click.group("engine")
def command() -> None:
    """Build, find, describe and change the patched llama.cpp.

    SB_EDGE_CACHE sets the cache folder, SB_EDGE_ENGINE names a prefix to use instead of the cache's,
    SB_EDGE_ENGINE_VARIANT (native, portable, debug) chooses the variant that all commands use.
    """


@command.command("build")
@_engine_options
@click.option(
    "--target",
    "architecture",
    type=click.Choice(["arm64", "arm64-linux"]),
    help="Build static programs for 64-bit Arm phones and boards instead (needs sb-edge[phone]).",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1),
    help="Number of parallel compilers.  [default: as CPUs and memory allow]",
)
@click.option("--force", is_flag=True, help="Build again even if it is in the cache.")
def build(
    portable: bool, debug: bool, patches: PatchChoice, architecture: str | None, jobs: int | None, force: bool
) -> None:
    """Build the engine, or find it in the cache; print its folder.

    Fetches the pinned source through pip (SHA-256 checked), applies the patches, compiles with cmake and
    ninja from PyPI. About ten minutes on two cores, once. CC and CXX choose the compilers; CFLAGS and the
    like are ignored.

    --target arm64 cross-compiles the programs of `sb-edge device` for three generations of CPUs, with zig as
    the compiler; the same programs run on phones (adb, Termux) and on Linux boards (arm64-linux).
    """
    variant = _variant(portable, debug)
    if architecture is None:
        engine = build_engine(variant, jobs, patches=patches, force=force)
    elif variant or patches != "all":
        raise click.UsageError("--target goes with none of --portable, --debug and --patches")
    else:
        engine = build_cross(jobs=jobs, force=force)
    click.echo(engine.prefix)


@command.command("info", cls=FileCommand)
@_engine_options
@click.option("--verify", is_flag=True, help="Read every file and compare it with the manifest.")
@json_option
def info(portable: bool, debug: bool, patches: PatchChoice, verify: bool, json_target: str | None) -> None:
    """Say what the engine was built from and with.

    JSON fields: prefix, key, variant, package, version, sha256, commit, ggml_version, licence, patches and
    overlay (name to SHA-256), flags, compiler, cpu, cpu_features, system_info, sanitizer_runtime, built_at.
    """
    engine = find_engine(_variant(portable, debug), patches)
    if verify:
        click.echo(f"{engine.verify()} files are as built", err=True)
    document = {"prefix": str(engine.prefix), **engine.info.model_dump(exclude={"files"})}
    emit(document, json_target, lambda console: _render(console, engine))


@command.command("path")
@_engine_options
def path(portable: bool, debug: bool, patches: PatchChoice) -> None:
    """Print the engine's folder; its tools (llama-server, llama-imatrix, ...) are in bin/ there."""
    click.echo(find_engine(_variant(portable, debug), patches).prefix)


@command.command("checkout")
@click.argument("folder", type=PATH)
def checkout(folder: Path) -> None:
    """Write a git tree of the patched llama.cpp to FOLDER, to work on the engine.

    The tag `upstream` marks the pinned source. Edit and build with cmake, then run `refresh-patches`.
    """
    click.echo(write_checkout(folder))


@command.command("refresh-patches")
@click.argument("tree", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=PATH, help="Folder of the patches.  [default: installed]")
@click.option("--new", metavar="NAME", help="Patch for upstream files that no patch changes yet.")
def refresh(tree: Path, output: Path | None, new: str | None) -> None:
    """Write patches and overlay from a TREE that `checkout` made; print the files that changed."""
    for file in refresh_patches(tree, output, new=new):
        click.echo(file)


def _render(console: Console, engine: Engine) -> None:
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
    console.print(grid(rows.items()))
