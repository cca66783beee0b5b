"""Answers of devices are hostile: rows, descriptions, progress, names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sb_edge.bench.rows.row import Row
from sb_edge.bench.speed.plan import BenchModel, Subject, examine
from sb_edge.device.description import parse_info
from sb_edge.device.known_devices import KnownDevices
from sb_edge.device.measuring import make_row
from sb_edge.device.transport import Transport
from sb_edge.engine.cross import choose_variant
from sb_edge.engine.machine import Machine
from sb_edge.engine.zig import translate
from sb_edge.util.errors import RemoteError

READING = {
    "t_ms": 10,
    "khz": {"policy0": 1_700_000, "policy4": 2_900_000},
    "khz_limit": {"policy0": 1_700_000, "policy4": 2_000_000},
    "celsius": {"cpu": 41.5},
    "cooling": {},
    "battery": {"source": "sysfs", "status": "Discharging", "charge_counter": 5000, "voltage_now": 4000000},
    "available_kib": 100,
    "rss_kib": 50,
}
LINE: dict[str, Any] = {
    "model_index": 0,
    "model_type": "spikingbrain 1B Q4_0",
    "model_size": 700,
    "model_n_params": 1000,
    "n_ctx_train": 4096,
    "n_batch": 256,
    "n_ubatch": 256,
    "n_threads": 4,
    "type_k": "f16",
    "type_v": "f16",
    "flash_attn": -1,
    "n_prompt": 0,
    "n_gen": 32,
    "n_depth": 1024,
    "repetitions": 2,
    "n_warmup": 1,
    "samples_ns": [3_000_000_000, 4_000_000_000],
    "fill": "real",
    "turns": None,
    "kv_bytes": 100,
    "state_bytes": 10,
    "rss_bytes": 1000,
    "read_bandwidth": 2e10,
    "arch": "armv8-a",
    "cpus": [4, 5, 6, 7],
    "tried": [{"cpus": [4], "ts": 5.0}],
    "depth_source": "device",
    "prefill_ns": 10**9,
    "resumed_from": 0,
    "samples_at_ms": [1, 2],
    "decode_from_ms": 1,
    "telemetry": [READING],
}
INFO: dict[str, Any] = {
    "kernel": "Linux 5.10.177-android13",
    "arch": "aarch64",
    "page_size": 4096,
    "memory_kib": 7812345,
    "features": "fp asimd",
    "parts": {"0x41:0xd4e": 1, "0x41:0xfff": 4},
    "clusters": [{"policy": "policy0", "cpus": [0, 1], "max_khz": 1704000, "capacity": 160}],
    "cpus": [1, 0],
    "big_cpus": [1, 0],
    "now": READING,
}
NASTY: list[Any] = [
    None,
    -1,
    2**70,
    1e308,
    "\x1b]0;x\x07" * 50,
    "../" * 90,
    [],
    {},
    [[]] * 9,
    True,
    "NaN",
    {"a": {}},
]


@pytest.fixture
def subject(tiny_gguf: Path) -> Subject:
    return examine(BenchModel("tiny", tiny_gguf))


def parse(line: str, subject: Subject, machine: Machine) -> Row:
    return make_row(line, [subject], machine, {"policy0": 1_700_000, "policy4": 2_900_000}, "adb:1")


def test_a_line_becomes_a_row_of_bench_decode(subject: Subject, machine: Machine) -> None:
    row = parse(json.dumps(LINE), subject, machine)
    assert (row.label, row.model, row.median_ts) == ("tg32 @ d1024", "tiny", pytest.approx((32 / 3 + 8) / 2))
    assert (row.temperature_c, row.throttle_events, row.cpu_mhz) == (41.5, 1, 2900.0)
    assert row.model_sha256 == subject.sha256
    assert row.machine == machine
    assert row.phone is not None
    assert row.phone.cpus == (4, 5, 6, 7)
    assert Row.model_validate_json(json.dumps(row.to_json())) == row


def test_a_hundred_wrong_lines_are_refused_on_one_line(subject: Subject, machine: Machine) -> None:
    generator = random.Random(5)
    refused = 0
    for number in range(100):
        line = json.loads(json.dumps(LINE))
        where = line if number % 2 else line["telemetry"][0]
        where[generator.choice(list(where))] = generator.choice(NASTY)
        text = json.dumps(line)
        if number % 10 == 0:
            text = text[: generator.randrange(len(text))]
        try:
            parse(text, subject, machine)
        except RemoteError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(error).isprintable()
            assert len(str(error)) < 400
    assert refused > 80


def test_a_description_is_checked(machine: Machine) -> None:
    transport = Transport("adb:1")
    info = parse_info(transport, json.dumps(INFO))
    assert info.cpu_name == "1 x Cortex-X3 + 4 x 0x41:0xfff"
    for key in ("kernel", "parts", "clusters", "cpus", "now"):
        for value in NASTY[:4]:
            with pytest.raises(RemoteError, match="not valid"):
                parse_info(transport, json.dumps(INFO | {key: value}))
    for text in ("", "[1]", '{"kernel"', "\x1b[2J"):
        with pytest.raises(RemoteError) as caught:
            parse_info(transport, text)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ("fp asimd crc32", "armv8.0"),
        ("fp asimd asimdhp", "armv8.0"),
        ("fp asimd asimdhp asimddp", "armv8.2"),
        ("fp asimd asimdhp asimddp i8mm sve", "armv8.6"),
        ("i8mm", "armv8.0"),
    ],
)
def test_a_program_is_never_newer_than_the_cpu(features: str, name: str) -> None:
    assert choose_variant(features.split()).name == name


def test_features_reach_clang_for_the_files_that_ask_for_them() -> None:
    arguments = ["-O3", "-march=armv8.2-a+dotprod+fp16", "x.c"]
    flags = [flag for flag in translate(arguments) if flag not in ("-Xclang", "-target-feature")]
    assert flags == ["-O3", "+v8.2a", "+dotprod", "+fullfp16", "x.c"]
    assert translate(["-march=armv8-a", "x.c"]) == ["x.c"]
    with pytest.raises(KeyError):
        translate(["-march=armv8.2-a+sve"])


def test_devices_are_remembered_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "config" / "devices.json"
    KnownDevices(path).add("phone", "adb:0123456789")
    assert KnownDevices(path).find("phone").address == "adb:0123456789"
    with pytest.raises(RemoteError, match="is not a name"):
        KnownDevices(path).add("../x", "adb:1")
    with pytest.raises(RemoteError, match="is not an address"):
        KnownDevices(path).add("x", "usb:1")
    KnownDevices(path).remove("phone")
    with pytest.raises(RemoteError, match=r"no device of this name \(found none\)"):
        KnownDevices(path).find("phone")
    path.write_text('{"devices": [1]}')
    with pytest.raises(RemoteError, match="is not a file of devices"):
        KnownDevices(path)
