"""State of the processor during a measurement: frequency, temperature, throttling."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Kernel names of processor sensors, in order of preference."""

THROTTLE_COUNTS = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"


@dataclass(frozen=True)
class Conditions:
    """State after a measurement; values are None if the system does not provide them.

    Attributes:
        cpu_mhz, cpu_mhz_max: mean frequency over the cores, and their maximum frequency, MHz.
        temperature_c: temperature of the processor's hottest sensor, degrees Celsius.
        throttle_events: number of thermal throttling events of all cores during the measurement.
    """

    cpu_mhz: float | None
    cpu_mhz_max: float | None
    temperature_c: float | None
    throttle_events: int | None


def throttle_count() -> int | None:
    """Number of thermal throttling events of all cores since boot; None if not available."""
    files = sorted(Path("/").glob(THROTTLE_COUNTS.lstrip("/")))
    try:
        return sum(int(file.read_text()) for file in files) if files else None
    except (OSError, ValueError):
        return None


def read_conditions(throttled_before: int | None) -> Conditions:
    """Read the current state.

    Args:
        throttled_before: `throttle_count()` before the measurement.
    """
    mhz, mhz_max = _frequency()
    now = throttle_count()
    events = None if now is None or throttled_before is None else max(now - throttled_before, 0)
    return Conditions(mhz, mhz_max, _temperature(), events)


def _frequency() -> tuple[float | None, float | None]:
    try:
        cores = psutil.cpu_freq(percpu=True) or []
    except (OSError, NotImplementedError):
        cores = []
    current = [core.current for core in cores if core.current]
    highest = [core.max for core in cores if core.max]
    return (statistics.fmean(current) if current else None), max(highest, default=None)


def _temperature() -> float | None:
    # psutil defines this function only on systems with sensors.
    read: Callable[[], dict[str, list[Any]]] = getattr(psutil, "sensors_temperatures", dict)
    try:
        sensors = read()
    except OSError:
        return None
    for name in CPU_SENSORS:
        degrees = [sensor.current for sensor in sensors.get(name, []) if sensor.current > 0]
        if degrees:
            return float(max(degrees))
    return None
