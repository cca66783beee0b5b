"""A benchmark that runs detached on a device and is polled: whatever breaks, the same command goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sb_edge.bench.rows.phone import Natural, Phone, battery_energy
from sb_edge.bench.rows.results import ResultsFile
from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.timing import summarize
from sb_edge.bench.speed.measure import bytes_per_token, source_fields
from sb_edge.bench.speed.plan import FillChoice, Subject, label_of_test
from sb_edge.device.description import Device, DeviceInfo
from sb_edge.device.pushing import fetch_text, push
from sb_edge.device.transport import Transport, last_line, quoted
from sb_edge.engine.machine import Machine
from sb_edge.memory.forecast import FlashChoice
from sb_edge.util.errors import RemoteError, SbEdgeError
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.progress import note, progress_bar
from sb_edge.util.user_cache import remembered_sha256
from sb_edge.util.validation import first_problem

ROWS_LIMIT = 64 << 20
"""Bytes of rows that are taken from a run."""

RESTARTS = 20
"""How often a program that was killed is started again without any progress between."""

START_SECONDS = 20

_START = """
cd {run} || exit 92
if [ -s pid ] && grep -q {sha} /proc/$(cat pid)/cmdline 2>/dev/null; then echo running; exit 0; fi
set -- $(sha256sum < ../../files/{sha})
if [ "$1" != {sha} ]; then echo "the program is not the one that was pushed" >&2; exit 91; fi
rm -f pid exit
nohup setsid sh -c 'echo $$ > pid; "$@"; echo $? > exit.partial; mv exit.partial exit' sb-edge-bench \
    ../../files/{sha} {arguments} > log 2>&1 < /dev/null &
for i in 1 2 3 4 5 6 7 8 9 10; do [ -s pid ] || [ -s exit ] || sleep 0.2; done
echo started
"""

_POLL = """
cd {run} || exit 92
if [ -s exit ]; then echo exit $(cat exit)
elif [ -s pid ] && grep -q {sha} /proc/$(cat pid)/cmdline 2>/dev/null; then echo alive
else echo gone; fi
[ -e rows.jsonl ] && stat -c %s rows.jsonl || echo 0
[ -e progress.json ] && cat progress.json || echo '{{}}'
"""


class DeviceBench(BaseModel):
    """Settings of a benchmark on a device, under the names of `BenchSettings`.

    Attributes:
        cpus: CPUs to use, "4-7"; None: calibrated among the big cores.
        save_every: tokens between two saved contexts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    depths: tuple[int, ...]
    n_gen: int = 32
    repetitions: int = 5
    n_warmup: int = 1
    n_ubatch: int = 256
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: FlashChoice = "auto"
    fill: FillChoice = "auto"
    cpus: str | None = None
    save_every: int = 4096

    def arguments(self) -> list[str]:
        """The program's options."""
        options = {
            "-d": ",".join(map(str, sorted(set(self.depths)))),
            "-n": self.n_gen,
            "-r": self.repetitions,
            "--warm-up": self.n_warmup,
            "-ub": self.n_ubatch,
            "-ctk": self.type_k,
            "-ctv": self.type_v,
            "-fa": self.flash_attn,
            "--fill": self.fill,
            "--cpus": self.cpus,
            "--save-every": self.save_every,
        }
        return [str(part) for pair in options.items() if pair[1] is not None for part in pair]


class BenchProgress(BaseModel):
    """`progress.json` of a run."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    phase: Annotated[str, Field(max_length=20)] = ""
    model_index: Natural = 0
    n_depth: Natural = 0
    position: Natural = 0
    rows: Natural = 0


@dataclass(frozen=True)
class _Status:
    exit: int | None
    alive: bool
    rows_bytes: int
    progress: BenchProgress


class DeviceRun:
    """One benchmark in its folder on the device; the folder's name is a hash of all that decides the result.

    Args:
        device: the device.
        subjects: the models, measured interleaved.
        settings: settings of all models.
    """

    def __init__(self, device: Device, subjects: Sequence[Subject], settings: DeviceBench) -> None:
        self.device, self.subjects, self.settings = device, subjects, settings
        self._transport = device.transport
        self.info: DeviceInfo = device.info()
        self.machine: Machine = device.machine(self.info)
        identity = json.dumps(
            [[one.sha256 for one in subjects], settings.model_dump(), device.program_sha256]
        )
        self.folder = f"runs/{sha256_of_bytes(identity.encode())[:16]}"

    def prepare(self) -> None:
        """Make the folder, and send the models; the program is there since it described the device."""
        self._transport.ask(f"mkdir -p {self.folder}")
        for subject in self.subjects:
            push_model(self._transport, subject)

    def forget(self) -> None:
        """Remove the run's rows and contexts, so that everything is measured again."""
        self.stop()
        self._transport.ask(f"rm -rf {self.folder}")

    def stop(self) -> None:
        """End the program if it runs; saved contexts and rows stay."""
        self._transport.ask(
            f"cd {self.folder} 2>/dev/null && [ -s pid ] && p=$(cat pid) "
            f"&& grep -q {self.device.program_sha256} /proc/$p/cmdline 2>/dev/null && kill -9 -$p; true"
        )

    def has_context(self, index: int, depth: int) -> bool:
        """Whether the device has a model's context of this depth."""
        name = f"{self.folder}/m{index}-{depth}.context"
        return self._transport.ask(f"[ ! -e {name} ] || echo present") == "present"

    def put_context(self, path: Path, sha256: str, index: int, depth: int) -> None:
        """Send a context that this machine has read."""
        name = f"{self.folder}/m{index}-{depth}.context"
        pushed = push(self._transport, path, sha256)
        self._transport.ask(f"[ -e {name} ] || mv {pushed} {name}")

    def start(self) -> None:
        """Start the program, unless it is running.

        Raises:
            RemoteError: it is not the file that was pushed.
        """
        models = [f"../../files/{_file_and_sha256(subject)[1]}" for subject in self.subjects]
        arguments = ["bench", *models, "--work", ".", *self.settings.arguments()]
        script = _START.format(run=self.folder, sha=self.device.program_sha256, arguments=quoted(*arguments))
        self._transport.ask(script)

    def follow(self, on_rows: Callable[[list[Row]], object], *, interval: float = 2.0) -> None:
        """Poll until all rows have arrived; start the program again if it was killed.

        Args:
            on_rows: called with rows as they arrive; with rows of earlier calls as well.
            interval: seconds between two questions.

        Raises:
            RemoteError: the program failed, or is killed again and again.
            ConnectionLost: the device stays away; the program goes on there.
        """
        taken, restarts, last = 0, 0, BenchProgress()
        expected = len(self.subjects) * len(set(self.settings.depths))
        reached = dict.fromkeys(range(len(self.subjects)), 0)
        total = max(self.settings.depths) * len(self.subjects)
        with progress_bar(f"{self._names()}: tokens read on the device", total) as advance:
            while True:
                status = self._poll()
                if status.rows_bytes != taken:
                    rows = self.rows()
                    on_rows(rows)
                    taken = status.rows_bytes
                if status.progress != last:
                    restarts, last = 0, status.progress
                    if last.position > reached.get(last.model_index, last.position):
                        advance(last.position - reached[last.model_index])
                        reached[last.model_index] = last.position
                if status.exit == 0 and last.rows >= expected:
                    return
                if status.exit not in (None, 0, 3) and status.exit < 128:
                    raise RemoteError(
                        "the benchmark failed on the device",
                        item=self._transport.address,
                        found=last_line(fetch_text(self._transport, f"{self.folder}/log", ROWS_LIMIT)),
                    )
                if not status.alive:
                    restarts += 1
                    if restarts > RESTARTS:
                        raise RemoteError(
                            "the benchmark is killed again and again",
                            item=self._transport.address,
                            hint="close other apps, keep the screen on, or choose a smaller model",
                        )
                    note("the program on the device has ended early; it goes on from its last context")
                    self.start()
                time.sleep(interval)

    def rows(self) -> list[Row]:
        """All rows that the device has measured.

        Raises:
            RemoteError: a line that is not valid.
        """
        # The mark keeps the last newline, without which a line is still being written.
        script = f"[ ! -e {self.folder}/rows.jsonl ] || cat {self.folder}/rows.jsonl; printf '|'"
        *lines, _ = self._transport.ask(script, limit=ROWS_LIMIT).split("\n")
        max_khz = {cluster.policy: cluster.max_khz for cluster in self.info.clusters}
        return [
            make_row(line, self.subjects, self.machine, max_khz, self._transport.address) for line in lines
        ]

    def _names(self) -> str:
        return ", ".join(subject.name for subject in self.subjects)

    def _poll(self) -> _Status:
        script = _POLL.format(run=self.folder, sha=self.device.program_sha256)
        answer = self._transport.ask(script)
        try:
            state, size, progress = answer.splitlines()
            word, _, number = state.partition(" ")
            return _Status(
                exit=int(number) if word == "exit" else None,
                alive=word == "alive",
                rows_bytes=int(size),
                progress=BenchProgress.model_validate_json(progress),
            )
        except (ValueError, ValidationError):
            raise RemoteError(
                "reports the benchmark in a form that is not valid",
                item=self._transport.address,
                found=repr(answer[:80]),
            ) from None


def push_model(transport: Transport, subject: Subject) -> str:
    """Send a model; return its name on the device.

    Raises:
        RemoteError: the model consists of several files; see `push` for others.
    """
    return push(transport, *_file_and_sha256(subject))


def _file_and_sha256(subject: Subject) -> tuple[Path, str]:
    """The one file of a model, and the SHA-256 of its content, which is its name on a device."""
    files = subject.header.files
    if len(files) > 1:
        raise RemoteError(
            "is split into several files",
            path=subject.path,
            hint="join them with `sb-edge run llama-gguf-split`",
        )
    return files[0], remembered_sha256(files[0])


def make_row(
    line: str, subjects: Sequence[Subject], machine: Machine, max_khz: dict[str, int], address: str
) -> Row:
    """A row of `bench decode`'s form from a line of the device program.

    Raises:
        RemoteError: not valid.
    """
    try:
        raw = json.loads(line)
        subject = subjects[raw.pop("model_index")]
        own = {name: raw.pop(name) for name in Phone.model_fields if name in raw}
        phone = Phone.model_validate_json(json.dumps(own | {"max_khz": max_khz}))
        decoding = phone.while_decoding
        phone = phone.model_copy(update={"energy_j": battery_energy(decoding)})
        n_gen, depth = raw["n_gen"], raw["n_depth"]
        timing = summarize(raw.pop("samples_ns"), n_gen)
        touched = bytes_per_token(subject.header, depth, n_gen, type_k=raw["type_k"], type_v=raw["type_v"])
        used = decoding[-1].khz
        fields = raw | {
            **asdict(timing),
            **source_fields(subject, machine),
            "label": label_of_test(0, n_gen, depth),
            "bytes_per_token": touched,
            "roofline_fraction": touched * timing.median_ts / raw["read_bandwidth"],
            "cpu_mhz": max(used.values()) / 1000 if used else None,
            "cpu_mhz_max": max(max_khz.values()) / 1000 if max_khz else None,
            "temperature_c": phone.hottest,
            "throttle_events": phone.throttled,
            "model_sha256": subject.sha256,
            "machine_id": machine.id,
            "engine_key": machine.engine_key,
            "machine": asdict(machine),
            "phone": phone.model_dump(),
        }
        return Row.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        found: object = first_problem(error).line[:200]
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        ArithmeticError,
        RecursionError,
        SbEdgeError,
    ) as problem:
        found = repr(problem)[:200]
    raise RemoteError("sends a row that is not valid", item=address, found=found) from None


def new_rows(rows: Sequence[Row], results: ResultsFile) -> list[Row]:
    """Rows that a results file does not have yet."""
    return [row for row in rows if row.key not in results.finished]
