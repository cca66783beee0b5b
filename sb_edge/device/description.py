"""The device's CPU: its features, its cores by name, and the build that suits it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sb_edge.device.pushing import push
from sb_edge.device.transport import Transport, last_line, quoted
from sb_edge.engine.cross import choose_variant, device_program, find_cross
from sb_edge.engine.machine import Machine
from sb_edge.engine.prefix import Engine
from sb_edge.util.errors import RemoteError
from sb_edge.util.user_cache import remembered_sha256
from sb_edge.util.validation import first_problem

PARTS = {
    "0x41:0xd03": "Cortex-A53",
    "0x41:0xd04": "Cortex-A35",
    "0x41:0xd05": "Cortex-A55",
    "0x41:0xd07": "Cortex-A57",
    "0x41:0xd08": "Cortex-A72",
    "0x41:0xd09": "Cortex-A73",
    "0x41:0xd0a": "Cortex-A75",
    "0x41:0xd0b": "Cortex-A76",
    "0x41:0xd0c": "Neoverse-N1",
    "0x41:0xd0d": "Cortex-A77",
    "0x41:0xd40": "Neoverse-V1",
    "0x41:0xd41": "Cortex-A78",
    "0x41:0xd44": "Cortex-X1",
    "0x41:0xd46": "Cortex-A510",
    "0x41:0xd47": "Cortex-A710",
    "0x41:0xd48": "Cortex-X2",
    "0x41:0xd49": "Neoverse-N2",
    "0x41:0xd4d": "Cortex-A715",
    "0x41:0xd4e": "Cortex-X3",
    "0x41:0xd80": "Cortex-A520",
    "0x41:0xd81": "Cortex-A720",
    "0x41:0xd82": "Cortex-X4",
    "0x41:0xd85": "Cortex-X925",
    "0x41:0xd87": "Cortex-A725",
}
"""Implementer and part of /proc/cpuinfo: name of the core."""

Name = Annotated[str, Field(max_length=64)]
Cpus = Annotated[list[Annotated[int, Field(ge=0, lt=1024)]], Field(max_length=1024)]
Whole = Annotated[int, Field(ge=0, lt=2**53)]


class Cluster(BaseModel):
    """CPUs that share a frequency; `capacity` is the scheduler's, 0 where it is not readable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    policy: Name
    cpus: Cpus
    max_khz: Whole
    capacity: Whole


class DeviceInfo(BaseModel):
    """Output of the device program's `info`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    kernel: Annotated[str, Field(max_length=200)]
    arch: Name
    memory_kib: Whole
    features: Annotated[str, Field(max_length=4096)] = ""
    parts: Annotated[dict[Name, Whole], Field(max_length=64)]
    clusters: Annotated[list[Cluster], Field(max_length=64)]
    cpus: Cpus
    big_cpus: Cpus
    now: Annotated[dict[str, Any], Field(max_length=32)]

    @property
    def cpu_name(self) -> str:
        """The cores, for example "4 x Cortex-A715 + 4 x Cortex-A510"."""
        cores = [f"{count} x {PARTS.get(part, part)}" for part, count in self.parts.items()]
        return " + ".join(cores) or self.arch


class Device:
    """A device with the program that suits its CPU.

    Args:
        transport: the connection.
        engine: the programs; None: `find_cross()`.

    Raises:
        RemoteError: not a 64-bit Arm device, or no connection.
        EngineError: the programs are not built.
    """

    def __init__(self, transport: Transport, engine: Engine | None = None) -> None:
        self.transport = transport
        self.engine = engine or find_cross()
        self.variant = choose_variant(read_features(transport))
        self._program = device_program(self.engine, self.variant)
        self.program_sha256 = remembered_sha256(self._program)

    def push_program(self) -> str:
        """Send the program if it is not there; return its name on the device."""
        return push(self.transport, self._program, self.program_sha256, executable=True)

    def checked(self, *arguments: str) -> str:
        """Shell text that runs the program only if its SHA-256 on the device is that of the one here."""
        name = f"files/{self.program_sha256}"
        check = f'set -- $(sha256sum < {name}); if [ "$1" != {self.program_sha256} ]; then '
        check += 'echo "the program is not the one that was pushed" >&2; exit 91; fi'
        return f"{check}\nexec ./{name} {quoted(*arguments)}"

    def info(self) -> DeviceInfo:
        """What the program says about the device.

        Raises:
            RemoteError: the program fails, or its answer is not valid.
        """
        self.push_program()
        answer = self.transport.retry(lambda: self.transport.run(self.checked("info")))
        if answer.status != 0:
            raise RemoteError(
                "the device program failed", item=self.transport.address, found=last_line(answer.errors)
            )
        return parse_info(self.transport, answer.output)

    def machine(self, info: DeviceInfo) -> Machine:
        """Description for rows; without the device's name, serial number and owner."""
        return Machine(
            cpu=info.cpu_name,
            physical_cores=len(info.cpus),
            logical_cores=len(info.cpus),
            memory_bytes=info.memory_kib << 10,
            governor=None,
            os=re.sub(r"^(\w+ [\d.]+).*", r"\1", info.kernel),
            engine_key=self.engine.info.key,
            engine_version=self.engine.info.version,
            engine_commit=self.engine.info.commit,
            patches=tuple(self.engine.info.patches),
        )


def parse_info(transport: Transport, text: str) -> DeviceInfo:
    """The answer of `info`.

    Raises:
        RemoteError: not valid.
    """
    try:
        return DeviceInfo.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error)
        raise RemoteError(
            "describes itself in a form that is not valid", item=transport.address, found=problem.line[:200]
        ) from None


def read_features(transport: Transport) -> frozenset[str]:
    """Features that all CPUs of the device have, from /proc/cpuinfo.

    Raises:
        RemoteError: not a 64-bit Arm device.
    """
    answer = transport.ask("uname -m; cat /proc/cpuinfo")
    machine, _, cpuinfo = answer.partition("\n")
    if machine != "aarch64":
        raise RemoteError(
            "is not a 64-bit Arm device",
            item=transport.address,
            found=machine[:40],
            expected="aarch64",
            hint="on a phone whose apps are 32-bit only, no program of this project runs",
        )
    lines = re.findall(r"^Features\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()
