"""The machine and the engine that a measurement was made on, without names of hosts or users."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sb_edge.engine import Engine
from sb_edge.system.cpu import physical_cores, usable_cpus
from sb_edge.util.hashes import sha256_of_bytes

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Machine:
    """What decides the speed, apart from the model.

    Attributes:
        cpu: the processor's name.
        physical_cores, logical_cores: those that this process may use.
        memory_bytes: installed memory.
        governor: the frequency governor, None where the system does not say.
        os: the operating system's name and the kernel's version.
        engine_key: content key of the engine build.
        engine_version: the release of llama-cpp-python that the engine was built from.
        engine_commit: the ggml/llama.cpp commit in it.
        patches: the patches that were applied to it, in order.
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
        """Twelve hexadecimal digits: the same machine, whatever engine or system it runs."""
        hardware = f"{self.cpu}/{self.logical_cores}/{self.memory_bytes >> 30}"
        return sha256_of_bytes(hardware.encode())[:12]

    def to_json(self) -> dict[str, Any]:
        """The fields and the identity as a plain dictionary."""
        return {"id": self.id, **asdict(self)}

    def facts(self) -> list[tuple[str, str]]:
        """Label and value pairs for a person to read."""
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
    """`Machine`'s cpu, physical_cores, logical_cores, memory_bytes and os."""
    return {
        "cpu": _cpu_name(),
        "physical_cores": len(physical_cores()),
        "logical_cores": len(usable_cpus()),
        "memory_bytes": psutil.virtual_memory().total,
        "os": _system(),
    }


def _cpu_name() -> str:
    import cpuinfo

    return str(cpuinfo.get_cpu_info().get("brand_raw") or platform.machine() or "unknown")


def _governor() -> str | None:
    try:
        return GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _system() -> str:
    """Distribution and kernel version, without what a vendor appends to the latter: that may name a host."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release().partition('-')[0]}"
