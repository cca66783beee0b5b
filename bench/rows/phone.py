"""The part of a row that only phones and boards have: CPUs, sensors over time, energy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

DepthSource = Literal["device", "host", "synthetic"]
Label = Annotated[str, Field(max_length=80)]
Natural = Annotated[int, Field(ge=0, lt=2**53)]
Reading = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Celsius = Annotated[float, Field(ge=-1000, le=10000, allow_inf_nan=False)]
Speed = Annotated[float, Field(ge=0, allow_inf_nan=False)]
CpuList = Annotated[tuple[Annotated[int, Field(ge=0, lt=1024)], ...], Field(max_length=1024)]

MAX_READINGS = 1300
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)

JOULES_PER_MICROAMPERE_HOUR_AND_VOLT = 3.6e-3


class Battery(BaseModel):
    """A reading of the battery under the names of /sys: µAh, µWh, µA, µV, tenths of a degree."""

    model_config = _STRICT

    source: Literal["sysfs", "dumpsys", "termux-battery-status", "none"]
    status: Label | None = None
    capacity: Reading | None = None
    charge_counter: Reading | None = None
    charge_now: Reading | None = None
    energy_now: Reading | None = None
    current_now: Reading | None = None
    voltage_now: Reading | None = None
    temp: Reading | None = None


class SensorReading(BaseModel):
    """All sensors at one time; what could not be read is absent.

    Attributes:
        t_ms: milliseconds since the beginning of the measurement.
        khz, khz_limit: frequency of each cluster, and the limit that throttling lowers.
        celsius: thermal zones by name.
        cooling: active cooling devices by name.
        available_kib: MemAvailable.
        rss_kib: resident memory of the program.
    """

    model_config = _STRICT

    t_ms: Natural
    khz: Annotated[dict[Label, Natural], Field(max_length=64)]
    khz_limit: Annotated[dict[Label, Natural], Field(max_length=64)]
    celsius: Annotated[dict[Label, Celsius], Field(max_length=256)]
    cooling: Annotated[dict[Label, Natural], Field(max_length=256)]
    battery: Battery
    available_kib: Natural | None = None
    rss_kib: Natural | None = None


class CpuTrial(BaseModel):
    """Decode speed of a set of CPUs in the calibration, tokens per second."""

    model_config = _STRICT

    cpus: CpuList
    ts: Speed


class Phone(BaseModel):
    """Fields of a row that was measured on a phone or board.

    Attributes:
        arch: instruction set of the program.
        cpus: CPUs that the threads were pinned to; empty if they were not.
        tried: speeds of the calibration.
        max_khz: highest frequency of each cluster.
        depth_source: who read the context: "device", "host" or "synthetic".
        prefill_ns: time that the context took.
        resumed_from: tokens of a saved context that the last run continued from.
        decode_from_ms: beginning of decoding, on the clock of `telemetry`.
        samples_at_ms: beginning of each repetition, on the same clock.
        energy_j: energy from the battery while decoding; None if it charged or was not readable.
        telemetry: readings over the measurement.
    """

    model_config = _STRICT

    arch: Label
    cpus: CpuList
    tried: Annotated[tuple[CpuTrial, ...], Field(max_length=64)]
    max_khz: Annotated[dict[Label, Natural], Field(max_length=64)]
    depth_source: DepthSource
    prefill_ns: Natural
    resumed_from: Natural
    decode_from_ms: Natural
    samples_at_ms: Annotated[tuple[Natural, ...], Field(max_length=10000)]
    energy_j: Speed | None = None
    telemetry: Annotated[tuple[SensorReading, ...], Field(min_length=1, max_length=MAX_READINGS)]

    @property
    def while_decoding(self) -> list[SensorReading]:
        """The readings while tokens were decoded."""
        return [one for one in self.telemetry if one.t_ms >= self.decode_from_ms] or [self.telemetry[-1]]

    @property
    def hottest(self) -> Celsius | None:
        """Highest temperature of any zone while decoding."""
        return max((value for one in self.while_decoding for value in one.celsius.values()), default=None)

    @property
    def throttled(self) -> int:
        """Number of readings while decoding in which a cluster's limit was below its highest frequency."""
        return sum(
            any(limit < self.max_khz.get(policy, 0) for policy, limit in one.khz_limit.items())
            for one in self.while_decoding
        )


def battery_energy(readings: Sequence[SensorReading]) -> float | None:
    """Energy that the battery gave, joules; None if it charged or its charge was not readable.

    Charge times mean voltage, or the energy counter where there is one.
    """
    batteries = [one.battery for one in readings]
    if len(batteries) < 2 or any(one.status != "Discharging" for one in batteries):
        return None
    first, last = batteries[0], batteries[-1]
    if first.energy_now is not None and last.energy_now is not None:
        return _positive((first.energy_now - last.energy_now) * JOULES_PER_MICROAMPERE_HOUR_AND_VOLT)
    joules = 0.0
    for one, other in pairwise(batteries):
        before, after = (
            each.charge_counter if each.charge_counter is not None else each.charge_now
            for each in (one, other)
        )
        if before is None or after is None or one.voltage_now is None or other.voltage_now is None:
            return None
        volts = (one.voltage_now + other.voltage_now) / 2e6
        joules += (before - after) * volts * JOULES_PER_MICROAMPERE_HOUR_AND_VOLT
    return _positive(joules)


def _positive(joules: float) -> float | None:
    """None for a counter that did not move while decoding."""
    return joules if joules > 0 else None
