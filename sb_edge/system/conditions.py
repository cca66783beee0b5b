"""The state that the processor was in while something was measured, as far as the system tells."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""The kernel's names for sensors at the processor, the most exact first."""

THROTTLE_COUNTS = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"


@dataclass(frozen=True)
class Conditions:
    """After a measurement; None where the system does not tell.

    Attributes:
        cpu_mhz, cpu_mhz_max: frequency, mean over the cores, and the highest that they can have.
        temperature_c: of the processor's hottest sensor, degrees Celsius.
        throttle_events: how often a core was slowed down for its heat during the measurement.
    """

    cpu_mhz: float | None
    cpu_mhz_max: float | None
    temperature_c: float | None
    throttle_events: int | None


def throttle_count() -> int | None:
    """How often a core was slowed down for its heat since the system booted; None: it does not count."""
    files = sorted(Path("/").glob(THROTTLE_COUNTS.lstrip("/")))
    try:
        return sum(int(file.read_text()) for file in files) if files else None
    except (OSError, ValueError):
        return None


def read_conditions(throttled_before: int | None) -> Conditions:
    """The processor's state now.

    Args:
        throttled_before: `throttle_count()` at the start of the measurement.
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
    # psutil has the function on systems only that have sensors at all.
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
