"""The device program and the operators in qemu, and whole measurements on phones in namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_phone import PHONES, FakePhone, Ticking
from gguf_edit import rewrite
from phones import QEMU, Phone, cable_pulled, require
from support import exit_code, refusal

from sb_edge.bench.report.page import write_report
from sb_edge.bench.rows.results import read_rows
from sb_edge.bench.rows.row import Row
from sb_edge.bench.speed.plan import BenchModel, Subject, examine
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.device.chatting import DeviceChat
from sb_edge.device.description import Device
from sb_edge.device.host_prefill import bench_tokens, host_contexts
from sb_edge.device.measuring import DeviceBench, DeviceRun, make_row, push_model
from sb_edge.device.transport import ConnectionLost
from sb_edge.engine.cross import VARIANTS, CpuVariant, device_program, find_cross
from sb_edge.engine.machine import Machine
from sb_edge.engine.prefix import Engine
from sb_edge.util.errors import EngineError
from sb_edge.util.hashes import sha256_of
from sb_edge.util.logits import nmse
from sb_edge.util.tolerances import ENGINE_F32, SPIKES_F32

pytestmark = pytest.mark.phone

HERE = Path(__file__).parent
V8_0, V8_2, V8_6 = VARIANTS
ALL_CPUS = "max,sve=off,sme=off"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}<assistant>"
ONE_THREAD = DeviceBench(depths=(0, 96), n_gen=4, repetitions=2, cpus="0", save_every=32, n_ubatch=16)
"""Waiting threads spin, which takes long where several share an emulated CPU."""

StartPhone = Callable[..., Phone]


@pytest.fixture(scope="session")
def engine() -> Engine:
    require(QEMU)
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    try:
        return find_cross()
    except EngineError as error:
        if "not built" not in str(error):
            raise
        pytest.skip(str(error))


def run(program: Path, *arguments: object, cpu: str = "cortex-a76") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QEMU_CPU": cpu}
    command = [QEMU, program, *arguments]
    return subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
    )


def operators(engine: Engine, variant: CpuVariant, cpu: str, chosen: str) -> tuple[int, int]:
    """Operator cases that passed, and all of them."""
    program = device_program(engine, variant, "test-backend-ops")
    done = run(program, "test", "-b", "CPU", "-o", chosen, cpu=cpu)
    found = re.search(r"(\d+)/(\d+) tests passed", done.stdout)
    assert done.returncode == 0, done.stdout[-2000:]
    assert found
    assert "FAIL" not in done.stdout
    return int(found[1]), int(found[2])


def test_operators_of_one_variant(engine: Engine) -> None:
    passed, cases = operators(engine, V8_2, "cortex-a76", "SB_SPIKE_CODE,SB_GLA")
    assert passed == cases > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("variant", "cpu"),
    [
        (V8_0, "cortex-a53"),
        (V8_0, "cortex-a76"),
        (V8_0, ALL_CPUS),
        (V8_2, "cortex-a76"),
        (V8_2, ALL_CPUS),
        (V8_6, ALL_CPUS),
    ],
)
def test_all_operators(engine: Engine, variant: CpuVariant, cpu: str) -> None:
    from sb_edge.engine.upstream_tests import OPERATORS

    passed, cases = operators(engine, variant, cpu, OPERATORS)
    assert passed == cases > 500


def refused(program: Path, cpu: str, golden_gguf: Path, tmp_path: Path) -> None:
    done = run(program, "bench", golden_gguf, "--work", tmp_path, cpu=cpu)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"error: this program needs .* for an older one\n", done.stderr)


def test_too_new_a_program_says_so_on_an_older_cpu(engine: Engine, golden_gguf: Path, tmp_path: Path) -> None:
    refused(device_program(engine, V8_2), "cortex-a53", golden_gguf, tmp_path)


@pytest.mark.slow
def test_the_newest_program_says_so_too(engine: Engine, golden_gguf: Path, tmp_path: Path) -> None:
    for cpu in ("cortex-a53", "cortex-a76"):
        refused(device_program(engine, V8_6), cpu, golden_gguf, tmp_path)


def logits(program: Path, model: Path, tokens: np.ndarray, folder: Path, *options: object) -> np.ndarray:
    given, out = folder / "tokens.i32", folder / "logits.f32"
    tokens.astype("<i4").tofile(given)
    done = run(program, "logits", model, given, out, "-t", 1, "-ctk", "f32", "-ctv", "f32", *options)
    assert done.returncode == 0, done.stderr
    return np.fromfile(out, "<f4").reshape(len(tokens), -1)


@pytest.mark.parametrize("piece", [96, 7])
@pytest.mark.parametrize("name", ["gla_swa", "w8aspike"])
def test_recorded_logits(engine: Engine, data: Path, tmp_path: Path, name: str, piece: int) -> None:
    golden = np.load(data / name / "golden.npz")
    model = tmp_path / "model.gguf"
    convert_checkpoint(data / name, model, outtype="f32")
    found = logits(device_program(engine, V8_2), model, golden["input_ids"], tmp_path, "--piece", piece)
    tolerance = SPIKES_F32 if name == "w8aspike" else ENGINE_F32
    assert nmse(golden["logits"], found) <= min(1e-12, tolerance.nmse)
    assert (golden["logits"].argmax(1) == found.argmax(1)).all()


def test_a_context_of_this_machine_gives_the_device_s_own_logits(
    engine: Engine, golden_gguf: Path, tmp_path: Path
) -> None:
    subject = examine(BenchModel("golden", golden_gguf))
    settings = DeviceBench(depths=(64,), type_k="f32", type_v="f32")
    ((depth, context),) = host_contexts(subject, [64], settings, tmp_path)
    tokens = np.array(bench_tokens(0, 80, 256))
    program = device_program(engine, V8_2)
    whole = logits(program, golden_gguf, tokens, tmp_path)
    rest = logits(program, golden_gguf, tokens[depth:], tmp_path, "--context", context)
    assert nmse(whole[depth:], rest) <= 1e-10
    damaged = bytearray(context.read_bytes())
    damaged[-1] ^= 1
    context.write_bytes(damaged)
    done = run(program, "logits", golden_gguf, tmp_path / "tokens.i32", tmp_path / "x", "--context", context)
    assert (done.returncode, done.stderr) == (1, f"error: {context}: not a saved context\n")


def test_wrong_use_is_one_line(engine: Engine, tmp_path: Path) -> None:
    program = device_program(engine, V8_2)
    for arguments in (["bench", "no.gguf", "--work", tmp_path], ["chat", "no.gguf"], ["info", "-n", "x"]):
        done = run(program, *arguments)
        assert done.returncode == 1
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert run(program).returncode == 2
    assert run(program, "--help").stdout.startswith("sb-device info")


@pytest.mark.parametrize(
    ("name", "big"),
    [
        ("three clusters", [8, 4, 5, 6, 7]),
        ("big cores only", [7, 4, 5, 6, 0, 1, 2, 3]),
        ("two of eight", [6, 7]),
        ("one cluster", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_big_cores_of_four_phones(engine: Engine, tmp_path: Path, name: str, big: list[int]) -> None:
    fake = FakePhone(tmp_path, name)
    done = run(device_program(engine, V8_2), "info", "--root", fake.root, cpu=ALL_CPUS)
    info = json.loads(done.stdout)
    assert info["big_cpus"] == big
    assert sorted(info["cpus"]) == list(range(len(info["cpus"])))
    assert info["now"]["celsius"] == {
        "cpu-0-0": 41,
        "cpu-1-0": 43.5,
        "skin": 33.2,
        "cpu-0-0#3": 40,
        "modem": -274,
    }
    assert info["now"]["battery"]["source"] == ("sysfs" if PHONES[name][2] else "none")


@pytest.fixture
def subject(golden_gguf: Path) -> Subject:
    return examine(BenchModel("golden", golden_gguf))


@pytest.mark.parametrize("name", ["three clusters", "two of eight"])
def test_throttling_and_energy_are_in_row_and_report(
    engine: Engine, subject: Subject, machine: Machine, tmp_path: Path, name: str
) -> None:
    fake = FakePhone(tmp_path / "phone", name)
    options = ["-d", "64", "-n", "24", "-r", "3", "-t", "1", "--sample-ms", "50"]
    with Ticking(fake, 0.1):
        done = run(
            device_program(engine, V8_2),
            *("bench", subject.path, "--work", tmp_path, "--root", fake.root, *options),
            cpu=ALL_CPUS,
        )
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    top = {f"policy{first}": khz for first, _, khz, _, _ in fake.clusters}
    row = make_row(line, [subject], machine, top, "adb:1")
    assert row.phone is not None
    assert len(row.phone.telemetry) > 5
    assert row.temperature_c is not None
    assert row.temperature_c > 44
    assert (row.phone.energy_j is not None) == PHONES[name][2]
    if row.temperature_c > 52:
        assert row.throttle_events
    write_report(tmp_path / "report.html", [row])
    assert (tmp_path / "report.html").read_text().count("<svg") == 5


class Killing:
    """Kills the device program up to `most` times while the block runs; counts the kills."""

    def __init__(self, phone: Phone, seconds: float, most: int) -> None:
        self.phone, self.seconds, self.most, self.kills = phone, seconds, most, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while self.kills < self.most and not self._ended.wait(self.seconds):
            with contextlib.suppress(ConnectionLost):  # a cable is pulled as well
                self.kills += self.phone.kill_program()

    def __enter__(self) -> Killing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def measure(device: Device, subjects: list[Subject], settings: DeviceBench) -> list[Row]:
    bench = DeviceRun(device, subjects, settings)
    bench.prepare()
    bench.start()
    seen: list[list[Row]] = []
    bench.follow(seen.append, interval=0.3)
    assert seen
    return bench.rows()


def test_a_benchmark_loses_nothing(
    engine: Engine, start_phone: StartPhone, connection: str, subject: Subject
) -> None:
    phone = start_phone(connection)
    device = Device(phone.transport, engine=engine)
    assert device.variant == V8_2
    with cable_pulled(phone, [4, 3, 3, 3]):
        rows = measure(device, [subject], ONE_THREAD)
    assert [row.n_depth for row in rows] == [0, 96]
    assert {row.machine.cpu for row in rows if row.machine} == {"6 x Cortex-A55 + 2 x Cortex-A76"}
    assert all(row.phone and row.phone.depth_source == "device" for row in rows)
    # The same command again takes the rows that are there.
    assert [row.samples_ns for row in measure(device, [subject], ONE_THREAD)] == [
        row.samples_ns for row in rows
    ]
    assert not phone.kill_program()


def test_the_host_reads_the_context(
    engine: Engine, start_phone: StartPhone, subject: Subject, tmp_path: Path
) -> None:
    phone = start_phone("ssh")
    bench = DeviceRun(Device(phone.transport, engine=engine), [subject], ONE_THREAD)
    bench.prepare()
    for depth, path in host_contexts(subject, [96], ONE_THREAD, tmp_path):
        bench.put_context(path, sha256_of(path), 0, depth)
    bench.start()
    bench.follow(lambda rows: None, interval=0.3)
    sources = [
        (row.n_depth, row.phone.depth_source, row.phone.resumed_from) for row in bench.rows() if row.phone
    ]
    assert sources == [(0, "device", 0), (96, "host", 96)]


@pytest.fixture(scope="session")
def chat_gguf(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.gguf"
    rewrite(tiny, path, {"tokenizer.chat_template": TEMPLATE})
    return path


def converse(device: Device, pushed: str, folder: str, texts: list[str]) -> list[str]:
    arguments = ["chat", pushed, "--json", "--state", folder, "-n", "6", "--cpus", "0", "--ctx", "512"]
    answers = []
    with DeviceChat(device, arguments) as talk:
        for text in texts:
            parts: list[str] = []
            talk.say(text, parts.append)
            answers.append("".join(parts))
    return answers


def test_a_conversation_goes_on_after_whatever_breaks(
    engine: Engine, start_phone: StartPhone, connection: str, chat_gguf: Path
) -> None:
    phone = start_phone(connection)
    device = Device(phone.transport, engine=engine)
    device.push_program()
    pushed = push_model(device.transport, examine(BenchModel("chat", chat_gguf)))
    texts = ["hello", "and then?", "thank you"]
    quiet = converse(device, pushed, "chats/quiet", texts)
    assert all(quiet)
    with cable_pulled(phone, [1.5, 1.0, 1.0]):
        assert converse(device, pushed, "chats/pulled", texts[:2]) == quiet[:2]
    # A later call continues from the state that the device has kept.
    assert converse(device, pushed, "chats/pulled", texts[2:]) == quiet[2:]
    assert phone.transport.ask("ls chats/pulled").split() == ["conversation.json", "lock", "turn-3.state"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_pulled_cables_and_kills(
    engine: Engine, start_phone: StartPhone, connection: str, subject: Subject, chat_gguf: Path
) -> None:
    phone = start_phone(connection)
    device = Device(phone.transport, engine=engine)
    settings = ONE_THREAD.model_copy(update={"depths": (0, 512, 2048), "save_every": 64, "n_gen": 16})
    with cable_pulled(phone, [1.7] * 15), Killing(phone, 4.1, 10) as killing:
        rows = measure(device, [subject], settings)
    assert [row.n_depth for row in rows] == [0, 512, 2048]
    assert killing.kills > 2
    pushed = push_model(device.transport, examine(BenchModel("chat", chat_gguf)))
    texts = [f"turn {number}" for number in range(8)]
    quiet = converse(device, pushed, "chats/quiet", texts)
    with cable_pulled(phone, [1.3] * 15), Killing(phone, 3.3, 5):
        assert converse(device, pushed, "chats/pulled", texts) == quiet


@pytest.fixture(scope="session")
def allowed_calls() -> Iterator[frozenset[str]]:
    lines = (HERE / "bionic_arm64.txt").read_text().splitlines()
    yield frozenset(name for line in lines if not line.startswith("#") for name in line.split())


KERNEL_NAMES = {
    "fstatat64": "newfstatat",
    "fstat64": "fstat",
    "mmap2": "mmap",
    "pread": "pread64",
    "pwrite": "pwrite64",
}
"""qemu's names of some system calls."""


def test_system_calls_are_those_that_android_lets_apps_make(
    engine: Engine, subject: Subject, chat_gguf: Path, tmp_path: Path, allowed_calls: frozenset[str]
) -> None:
    program = device_program(engine, V8_2)
    bench = ["bench", subject.path, "--work", tmp_path, "-d", "0,32", "-n", "2", "-r", "1", "-t", "1"]
    chat = ["chat", chat_gguf, "--state", tmp_path / "state", "-n", "2", "-t", "1"]
    for number, arguments in enumerate((["info"], bench, chat)):
        log = tmp_path / f"calls{number}"
        done = subprocess.run(
            [QEMU, "-strace", "-D", log, program, *map(str, arguments)],
            input="hello\n",
            env={**os.environ, "QEMU_CPU": "cortex-a76"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        calls = set(re.findall(r"^\d+ ([a-z_0-9]+)\(", log.read_text(errors="replace"), re.MULTILINE))
        assert len(calls) > 10
        assert {KERNEL_NAMES.get(call, call) for call in calls} - allowed_calls == set()


def test_the_command_line_from_add_to_report(
    engine: Engine,
    start_phone: StartPhone,
    golden_gguf: Path,
    chat_gguf: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = start_phone("ssh").transport.address
    rows, pulled, page = (tmp_path / name for name in ("rows.jsonl", "pulled.jsonl", "report.html"))
    assert exit_code("device", "add", "phone", address) == 0
    assert exit_code("device", "info", "phone", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["arch_of_program"] == V8_2.arch
    settings = ["-d", "0,32", "-n", 2, "-r", 2, "--cpus", 0, "--interval", 0.3, "--prefill", "host"]
    bench = ["device", "bench", "phone", golden_gguf, *settings]
    assert exit_code(*bench, "-o", rows) == 0
    assert exit_code(*bench, "-o", rows) == 0
    assert [(row.n_depth, row.phone and row.phone.depth_source) for row in read_rows(rows)] == [
        (0, "device"),
        (32, "host"),
    ]
    assert exit_code("device", "pull", "phone", "-o", pulled) == 0
    assert [row.key for row in read_rows(pulled)] == [row.key for row in read_rows(rows)]
    assert exit_code("bench", "report", rows, "-o", page) == 0
    capsys.readouterr()
    chat = ["device", "chat", "phone", chat_gguf, "-p", "hello", "-n", 4, "-c", 256, "--stats"]
    assert exit_code(*chat) == 0
    answer = capsys.readouterr()
    assert answer.out.strip()
    assert re.search(r"\d+ tokens read \(.*/s\), \d+ tokens written", answer.err)
    assert exit_code("device", "remove", "phone", "--files") == 0
    assert "no device of this name" in refusal(capsys, "device", "info", "phone")
