"""The fields of phones: energy, throttling, the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sb_edge.bench.report.page import write_report
from sb_edge.bench.report.sensors import sensor_tables
from sb_edge.bench.rows.phone import Phone, SensorReading, battery_energy
from sb_edge.bench.rows.results import ResultsFile, read_rows
from sb_edge.bench.rows.row import Row


def reading(second: int, **battery: Any) -> dict[str, Any]:
    hot = second >= 4
    values = {"status": "Discharging", "charge_counter": 2_000_000 - 100 * second, "voltage_now": 4_000_000}
    return {
        "t_ms": 1000 * second,
        "khz": {"policy0": 1_700_000, "policy4": 1_800_000 if hot else 3_000_000},
        "khz_limit": {"policy0": 1_700_000, "policy4": 1_800_000 if hot else 3_000_000},
        "celsius": {"cpu": 40.0 + second, "modem": -274.0},
        "cooling": {"thermal-cpufreq-0": 1} if hot else {},
        "battery": {"source": "sysfs", **values, **battery},
        "available_kib": 3_000_000,
        "rss_kib": 900_000,
    }


def phone(**changes: Any) -> Phone:
    fields = {
        "arch": "armv8.2-a+dotprod+fp16",
        "cpus": [4, 5, 6, 7],
        "tried": [{"cpus": [4], "ts": 5.0}, {"cpus": [4, 5, 6, 7], "ts": 11.0}],
        "max_khz": {"policy0": 1_700_000, "policy4": 3_000_000},
        "depth_source": "host",
        "prefill_ns": 10**9,
        "resumed_from": 4096,
        "decode_from_ms": 2000,
        "samples_at_ms": [2000, 4000, 6000],
        "telemetry": [reading(second) for second in range(8)],
    }
    whole = Phone.model_validate(fields | changes, strict=False)
    return whole.model_copy(update={"energy_j": battery_energy(whole.while_decoding)})


def test_throttling_and_temperature_are_those_while_decoding() -> None:
    one = phone()
    assert len(one.while_decoding) == 6
    assert one.throttled == 4
    assert one.hottest == 47.0


def test_energy_is_charge_times_voltage_and_absent_on_a_charger() -> None:
    readings = phone().telemetry
    # 500 µAh at 4 V: 500e-6 * 3600 * 4 joules
    assert battery_energy(readings[2:]) == pytest.approx(7.2)
    charging = [SensorReading.model_validate(reading(2, status="Charging"), strict=False), *readings[3:]]
    assert battery_energy(charging) is None
    assert battery_energy(readings[:1]) is None
    still = [SensorReading.model_validate(reading(n, charge_counter=5), strict=False) for n in range(3)]
    assert battery_energy(still) is None


@pytest.mark.parametrize(
    "change",
    [
        {"depth_source": "elsewhere"},
        {"cpus": [-1]},
        {"arch": "x" * 81},
        {"telemetry": []},
        {"telemetry": [reading(0)] * 1301},
        {"max_khz": {f"policy{n}": 1 for n in range(65)}},
        {"prefill_ns": 2**60},
        {"other": 1},
    ],
)
def test_what_no_phone_sends_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        phone(**change)


def test_rows_keep_the_sensors_and_the_report_shows_them(
    tmp_path: Path, make_row: Callable[..., Row], rows: list[Row]
) -> None:
    name = "4 x <b>Cortex</b> $\\frac"
    mine = make_row(phone=phone(), machine_id="f" * 12, cpu_info=name, n_depth=1024, label="tg32 @ d1024")
    path = tmp_path / "rows.jsonl"
    with ResultsFile(path) as results:
        results.append(mine)
    assert read_rows(path) == [mine]
    (table,) = sensor_tables([*rows, mine])
    assert table.rows[0][1:] == (
        "tg32 @ d1024",
        "host",
        "4, 5, 6, 7",
        "10.67",
        "10.00",
        "8.89",
        "47 °C",
        "4 of 6",
        "0.07 J/token",
    )
    write_report(tmp_path / "report.html", [*rows, mine])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert "<b>Cortex" not in page
    assert name.split()[0] in table.rows[0][0]
