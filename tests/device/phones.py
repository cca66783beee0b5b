"""A phone in a namespace, from the test's side."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_phone import FakePhone

from sb_edge.device.transport import Transport

HERE = Path(__file__).parent
PAUSES = (0.05,) * 40
QEMU = "qemu-aarch64-static"

KILL = """
found=1
for process in $(ls /proc | grep '^[0-9]'); do
    line=/proc/$process/cmdline
    if grep -q 'files/' $line && grep -qE 'bench|chat' $line && ! grep -qE '^(/system/bin/)?sh' $line; then
        kill -9 $process && found=0
    fi
done 2>/dev/null
exit $found
"""
"""Kills the device program, but not the shells whose command lines name it too."""


@dataclass
class Phone:
    """A running phone.

    Attributes:
        fake: its /proc and /sys.
        transport: a connection with short pauses.
        server: the process of its adbd or sshd.
    """

    fake: FakePhone
    transport: Transport
    server: subprocess.Popen[bytes]

    def pull_cable(self) -> None:
        """Break all connections."""
        os.kill(self._server_id(), signal.SIGUSR1)

    def kill_program(self) -> bool:
        """Kill the device program with SIGKILL; whether one was running."""
        found = self.transport.run(KILL)
        return found.status == 0

    def _server_id(self) -> int:
        """The Python process inside of the namespace."""
        parent = self.server.pid
        while True:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            if Path(f"/proc/{parent}/comm").read_text().startswith("python"):
                return parent
            parent = int(children[0])


def require(*programs: str) -> None:
    """Skip where a program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextmanager
def cable_pulled(phone: Phone, delays: list[float]) -> Iterator[None]:
    """Pull the cable after each of these delays (seconds) while the block runs."""
    ended = threading.Event()

    def pull() -> None:
        for delay in delays:
            if ended.wait(delay):
                return
            phone.pull_cable()

    thread = threading.Thread(target=pull)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
