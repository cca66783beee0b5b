"""`sb-edge device`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sb_edge.bench.rows.results import ResultsFile
from sb_edge.bench.rows.row_tables import results_table
from sb_edge.bench.speed.plan import Subject, examine
from sb_edge.cli.bench_options import (
    depths_option,
    fill_option,
    n_gen_option,
    repetitions_option,
    resolve_model,
    warm_up_option,
)
from sb_edge.cli.file_options import FileCommand, OutputFile
from sb_edge.cli.options import (
    cache_type_option,
    choice_option,
    flash_attn_option,
    json_option,
    model_argument,
    models_argument,
    tokens_option,
    ubatch_option,
)
from sb_edge.cli.params import Real
from sb_edge.cli.prompts import read_lines
from sb_edge.device.chatting import DeviceChat
from sb_edge.device.description import Device
from sb_edge.device.host_prefill import host_contexts, host_depths
from sb_edge.device.known_devices import KnownDevices, StartedBench
from sb_edge.device.measuring import DeviceBench, DeviceRun, new_rows, push_model
from sb_edge.device.transport import Transport, quoted
from sb_edge.util.errors import printable
from sb_edge.util.hashes import sha256_of, sha256_of_bytes
from sb_edge.util.output import emit, format_bytes
from sb_edge.util.table import Column, Table, grid

if TYPE_CHECKING:
    from rich.console import Console

    from sb_edge.bench.rows.row import Row
    from sb_edge.bench.speed.plan import FillChoice
    from sb_edge.device.description import DeviceInfo
    from sb_edge.memory.forecast import FlashChoice


@click.group("device")
def command() -> None:
    """Measure and chat on phones and boards, by adb or ssh.

    docs/phone.md shows the way from a phone in the drawer to the table of results. `sb-edge engine build
    --target arm64` builds the programs for them. SB_EDGE_ADB and SB_EDGE_SSH replace the commands `adb` and
    `ssh`.
    """


name_argument = click.argument("name")


def _transport(name: str) -> Transport:
    return Transport(KnownDevices().find(name).address)


def _subject(model: str) -> Subject:
    return examine(resolve_model(model))


@command.command("add")
@name_argument
@click.argument("address")
def add(name: str, address: str) -> None:
    """Give the device at ADDRESS a NAME.

    ADDRESS is adb:SERIAL, as `adb devices` shows it, or ssh:[USER@]HOST[:PORT]; Termux's sshd has port 8022.
    """
    KnownDevices().add(name, address)
    click.echo(f"{name}: {address}")


@command.command("list", cls=FileCommand)
@json_option
def list_devices(json_target: str | None) -> None:
    """List the devices that were added."""
    devices = KnownDevices().devices
    table = Table.of(
        list(devices.items()),
        {
            Column("device", right=False): lambda item: item[0],
            Column("address", right=False): lambda item: item[1].address,
            "benchmarks": lambda item: str(len(item[1].benches)),
        },
    )
    emit(
        {name: device.address for name, device in devices.items()},
        json_target,
        lambda console: console.print(table),
    )


@command.command("info", cls=FileCommand)
@name_argument
@json_option
def info(name: str, json_target: str | None) -> None:
    """Show a device's cores, sensors and the program that suits it."""
    device = Device(_transport(name))
    found = device.info()
    document = {"arch_of_program": device.variant.arch, **found.model_dump()}
    emit(document, json_target, lambda console: _show_info(console, device, found))


@command.command("push")
@name_argument
@models_argument()
def push(name: str, models: tuple[str, ...]) -> None:
    """Send the program and models to a device.

    An interrupted transfer is continued, and each file is compared by SHA-256 on the device.
    """
    device = Device(_transport(name))
    device.push_program()
    for model in models:
        click.echo(push_model(device.transport, _subject(model)))


@command.command("bench", cls=FileCommand)
@name_argument
@models_argument()
@depths_option("0,1024,4096")
@n_gen_option
@repetitions_option(5)
@warm_up_option
@cache_type_option("k")
@cache_type_option("v")
@flash_attn_option
@ubatch_option
@fill_option
@choice_option(
    "--prefill",
    ["device", "host"],
    "device",
    "Who reads the context: the device, or this machine, which sends the state.",
)
@click.option(
    "--cpus", metavar="LIST", help="CPUs to use, such as 4-7.  [default: calibrated among the big cores]"
)
@tokens_option("--save-every", default=4096, help="Tokens between two saved contexts.")
@click.option("-o", "--output", type=OutputFile(), help="JSON Lines file to append rows to.")
@click.option("--no-wait", is_flag=True, help="Start the benchmark and return; `device pull` gets the rows.")
@click.option("--force", is_flag=True, help="Measure again what the device has measured.")
@click.option(
    "--interval",
    type=Real(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two questions about the progress.",
)
@json_option
def bench(
    name: str,
    models: tuple[str, ...],
    depths: tuple[int, ...],
    n_gen: int,
    repetitions: int,
    warm_up: int,
    type_k: str,
    type_v: str,
    flash_attn: FlashChoice,
    n_ubatch: int,
    fill: FillChoice,
    prefill: str,
    cpus: str | None,
    save_every: int,
    output: Path | None,
    no_wait: bool,
    force: bool,
    interval: float,
    json_target: str | None,
) -> None:
    """Decode speed over depth on a device.

    The rows are those of `bench decode`, with the device's sensors over time. Several models are measured
    interleaved. The benchmark runs by itself on the device: after a lost connection, a closed terminal or a
    killed program, the same command continues.
    """
    settings = DeviceBench(
        depths=depths,
        n_gen=n_gen,
        repetitions=repetitions,
        n_warmup=warm_up,
        n_ubatch=n_ubatch,
        type_k=type_k,
        type_v=type_v,
        flash_attn=flash_attn,
        fill=fill,
        cpus=cpus,
        save_every=save_every,
    )
    subjects = [_subject(model) for model in models]
    run = DeviceRun(Device(_transport(name)), subjects, settings)
    if force:
        run.forget()
    run.prepare()
    if prefill == "host":
        _send_contexts(run)
    run.start()
    started = StartedBench(models=[one.path.resolve() for one in subjects], settings=settings)
    KnownDevices().remember_bench(name, run.folder, started)
    if no_wait:
        click.echo(f"started; `sb-edge device pull {name} -o FILE` gets the rows", err=True)
        return
    run.follow(lambda rows: _append(rows, output), interval=interval)
    rows = run.rows()
    emit(rows, json_target, lambda console: console.print(results_table(rows)))


@command.command("chat")
@name_argument
@model_argument()
@click.option("-p", "--prompt", "prompts", multiple=True, help="Say this instead of asking (repeatable).")
@click.option("-sys", "--system-prompt", "system", default="", help="System message.")
@click.option(
    "--conversation",
    default="default",
    show_default=True,
    help="Name of the conversation that is continued; its state is kept on the device.",
)
@click.option("--new", is_flag=True, help="Begin this conversation anew.")
@tokens_option("-n", "--n-predict", default=256, help="Maximum number of tokens to generate.")
@click.option(
    "--temp", type=Real(0), default=0.0, show_default=True, help="Temperature; 0: the most likely token."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=1, show_default=True, help="Random seed.")
@tokens_option("-c", "--ctx-size", "n_ctx", default=4096, help="Context size.", least=16)
@click.option("--stats", is_flag=True, help="Print tokens per second after each answer, to standard error.")
def chat(
    name: str,
    model: str,
    prompts: tuple[str, ...],
    system: str,
    conversation: str,
    new: bool,
    n_predict: int,
    temp: float,
    seed: int,
    n_ctx: int,
    stats: bool,
) -> None:
    """Chat with a model on a device; its state is kept there between turns and between calls.

    MODEL is a GGUF with a chat template, or a built-in model. Without --prompt, each line of standard input
    is a turn.
    """
    device = Device(_transport(name))
    device.push_program()
    subject = _subject(model)
    pushed = push_model(device.transport, subject)
    identity = f"{subject.sha256}\n{system}\n{n_ctx}\n{conversation}"
    folder = f"chats/{sha256_of_bytes(identity.encode())[:16]}"
    if new:
        device.transport.ask(quoted("rm", "-rf", folder))
    options = {"--state": folder, "-n": n_predict, "--temp": temp, "--seed": seed, "--ctx": n_ctx}
    arguments = ["chat", pushed, "--json", *(str(part) for pair in options.items() for part in pair)]
    with DeviceChat(device, [*arguments, *(["--system", system] if system else [])]) as talk:
        for text in prompts or read_lines():
            if text.strip():
                answer = talk.say(text.strip(), _show_text)
                click.echo()
                if stats:
                    click.echo(str(answer), err=True)


@command.command("pull", cls=FileCommand)
@name_argument
@click.option("-o", "--output", type=OutputFile(), required=True, help="JSON Lines file to append rows to.")
def pull(name: str, output: Path) -> None:
    """Get the rows of all benchmarks that were started on a device; rows that FILE has are left out."""
    device = Device(_transport(name))
    added = 0
    for bench in KnownDevices().find(name).benches.values():
        subjects = [_subject(str(path)) for path in bench.models]
        run = DeviceRun(device, subjects, bench.settings)
        added += _append(run.rows(), output)
    click.echo(f"{output}: {added} new rows")


@command.command("remove")
@name_argument
@click.option(
    "--files", is_flag=True, help="Also remove everything that was pushed or measured on the device."
)
def remove(name: str, files: bool) -> None:
    """Forget a device."""
    if files:
        _transport(name).ask("rm -rf files/* runs/* chats/*")
    KnownDevices().remove(name)


def _append(rows: list[Row], output: Path | None) -> int:
    """Append the rows that `output` does not have; return their number."""
    if output is None:
        return 0
    with ResultsFile(output) as results:
        new = new_rows(rows, results)
        results.append(*new)
    return len(new)


def _send_contexts(run: DeviceRun) -> None:
    finished = {(row.model_sha256, row.n_depth) for row in run.rows()}
    for index, subject in enumerate(run.subjects):
        depths = [
            depth
            for depth in host_depths(subject, run.settings)
            if (subject.sha256, depth) not in finished and not run.has_context(index, depth)
        ]
        if not depths:
            continue
        with tempfile.TemporaryDirectory(prefix="sb-edge-device-") as folder:
            for depth, path in host_contexts(subject, depths, run.settings, Path(folder)):
                run.put_context(path, sha256_of(path), index, depth)
                path.unlink()


def _show_text(text: str) -> None:
    """Print a device's text without control characters that could rewrite the terminal."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), nl=False)


def _show_info(console: Console, device: Device, found: DeviceInfo) -> None:
    clusters = [
        f"{cluster.policy}: CPUs {', '.join(map(str, cluster.cpus))}, {cluster.max_khz / 1e6:.2f} GHz"
        for cluster in found.clusters
    ]
    battery = found.now.get("battery", {})
    rows = {
        "cores": found.cpu_name,
        "clusters": "\n".join(clusters) or "not readable",
        "big cores": ", ".join(map(str, found.big_cpus)),
        "memory": format_bytes(found.memory_kib << 10),
        "kernel": f"{found.kernel} {found.arch}",
        "program": f"{device.variant.name} ({device.variant.arch})",
        "zones": str(len(found.now.get("celsius", {}))),
        "battery": str(battery.get("source", "none")) if isinstance(battery, dict) else "none",
    }
    console.print(grid((label, printable(text)) for label, text in rows.items()))
