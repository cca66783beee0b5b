"""Names of devices, and the benchmarks that were started on them, in the user's configuration folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from sb_edge.device.measuring import DeviceBench
from sb_edge.device.transport import require_address
from sb_edge.util.errors import RemoteError
from sb_edge.util.files import atomic_output
from sb_edge.util.input_files import read_input
from sb_edge.util.validation import first_problem

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,31}")


class StartedBench(BaseModel):
    """A benchmark that was started on a device: paths of its models, and its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: list[Path]
    settings: DeviceBench


class KnownDevice(BaseModel):
    """A device: its address, and its benchmarks by the name of their folder there."""

    model_config = ConfigDict(extra="forbid")

    address: str
    benches: dict[str, StartedBench] = {}


class _DevicesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    devices: dict[str, KnownDevice] = {}


class KnownDevices:
    """The file of known devices; every change is written at once.

    Args:
        path: None: `devices.json` in the user's configuration folder.

    Raises:
        RemoteError: the file is not valid.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(platformdirs.user_config_dir("sb-edge")) / "devices.json"
        try:
            self._content = _DevicesFile.model_validate_json(read_input(self.path, RemoteError))
        except FileNotFoundError:
            self._content = _DevicesFile()
        except ValidationError as error:
            raise RemoteError(
                "is not a file of devices",
                path=self.path,
                found=first_problem(error).line[:200],
                hint="remove it, and add the devices again",
            ) from None

    @property
    def devices(self) -> dict[str, KnownDevice]:
        """Devices by name."""
        return self._content.devices

    def add(self, name: str, address: str) -> None:
        """Remember a device.

        Raises:
            RemoteError: not a name or not an address.
        """
        if not NAME.fullmatch(name):
            raise RemoteError("is not a name", item=name, expected="up to 32 letters, digits, '.', '_', '-'")
        require_address(address)
        self.devices[name] = KnownDevice(address=address)
        self._write()

    def remove(self, name: str) -> None:
        """Forget a device."""
        self.find(name)
        del self.devices[name]
        self._write()

    def find(self, name: str) -> KnownDevice:
        """The device called `name`.

        Raises:
            RemoteError: there is none.
        """
        if name not in self.devices:
            known = ", ".join(self.devices) or "none"
            raise RemoteError(
                "no device of this name", item=name, found=known, hint="`sb-edge device add NAME ADDRESS`"
            )
        return self.devices[name]

    def remember_bench(self, name: str, folder: str, bench: StartedBench) -> None:
        """Remember a benchmark, for a later `pull`."""
        self.find(name).benches[folder] = bench
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(self.path) as partial:
            text = json.dumps(self._content.model_dump(mode="json"), indent=2)
            partial.write_text(text + "\n", encoding="utf-8")
