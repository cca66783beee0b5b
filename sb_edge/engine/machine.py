"""Description of machine and engine for measurements, without host or user names."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cpuinfo
import psutil

from sb_edge.engine import Engine
from sb_edge.system.cpu import physical_cores, usable_cpus
from sb_edge.util.hashes import sha256_of_bytes
from sb_edge.util.output import json_fields

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Machine:
    """Properties that determine the speed of a model.

    Attributes:
        cpu: name of the processor.
        physical_cores, logical_cores: number of cores available to this process.
        memory_bytes: installed memory, bytes.
        governor: frequency governor; None if not readable.
        os: name of the operating system and version of the kernel.
        engine_key: content key of the engine build.
        engine_version: release of llama-cpp-python with the engine's source.
        engine_commit: its ggml/llama.cpp commit.
        patches: applied patches, in order.
    """

    cpu: str
    physical_cores: int
    logical_cores: int
    memory_bytes: int
    governor: str | None
    os: str
    engine_key: str
    engine_version: str
    engine_commit: str
    patches: tuple[str, ...]

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that identify the hardware, independent of engine and system."""
        hardware = f"{self.cpu}/{self.logical_cores}/{self.memory_bytes >> 30}"
        return sha256_of_bytes(hardware.encode())[:12]

    def to_json(self) -> dict[str, Any]:
        """All fields and the identifier."""
        return {"id": self.id, **json_fields(self)}

    def facts(self) -> list[tuple[str, str]]:
        """Label and value pairs for display."""
        return [
            ("Processor", self.cpu),
            ("Cores", f"{self.physical_cores} physical, {self.logical_cores} logical"),
            ("Memory", f"{self.memory_bytes / 2**30:.1f} GiB"),
            ("Frequency governor", self.governor or "not readable"),
            ("System", self.os),
            ("Engine", f"llama.cpp of llama-cpp-python {self.engine_version}, build {self.engine_key}"),
            ("Patches", ", ".join(self.patches) or "none"),
        ]


def describe_machine(engine: Engine) -> Machine:
    """Describe this machine and `engine`."""
    return Machine(
        **hardware(),
        governor=_governor(),
        engine_key=engine.info.key,
        engine_version=engine.info.version,
        engine_commit=engine.info.commit,
        patches=tuple(engine.info.patches),
    )


def hardware() -> dict[str, Any]:
    """Values for `Machine`: cpu, physical_cores, logical_cores, memory_bytes and os."""
    return {
        "cpu": _cpu_name(),
        "physical_cores": len(physical_cores()),
        "logical_cores": len(usable_cpus()),
        "memory_bytes": psutil.virtual_memory().total,
        "os": _system(),
    }


def _cpu_name() -> str:
    return str(cpuinfo.get_cpu_info().get("brand_raw") or platform.machine() or "unknown")


def _governor() -> str | None:
    try:
        return GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _system() -> str:
    """Distribution and kernel version; without the kernel's vendor suffix, which can contain a host name."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release().partition('-')[0]}"
