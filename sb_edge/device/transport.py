"""Commands on a phone or board, through the programs adb and ssh."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from sb_edge.engine.process import stop
from sb_edge.util.errors import RemoteError
from sb_edge.util.progress import note

T = TypeVar("T")

ADDRESS = re.compile(
    r"adb:[A-Za-z0-9][\w.:-]{0,63}|ssh:(?:[A-Za-z0-9_][\w.-]{0,31}@)?[A-Za-z0-9][\w.-]{0,253}(?::\d{1,5})?"
)
"""`adb:SERIAL` or `ssh:[USER@]HOST[:PORT]`; nothing that a shell or an option parser could take for more."""

OUTPUT_LIMIT = 1 << 20
"""Bytes of output after which a device is not listened to any longer."""

TIMEOUT = 60.0
"""Seconds without an answer, or without progress of a transfer, after which a connection counts as lost."""

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each new attempt after a lost connection."""

NO_FOLDER = 90
"""Exit status of a script whose folder cannot be made."""

STATUS = "sb-edge status "
"""What stands before a script's exit status in the last line of its output."""

_LAST_LINE = re.compile(rb"(.*)\n%s(\d{1,3})\n" % STATUS.encode(), re.DOTALL)


class ConnectionLost(RemoteError):
    """The connection broke before the command's exit status arrived."""


@dataclass(frozen=True)
class Answer:
    """Result of a command: exit status, standard output and standard error."""

    status: int
    output: str
    errors: str


class Transport:
    """Runs shell commands in this project's folder on one device.

    Args:
        address: `adb:SERIAL` or `ssh:[USER@]HOST[:PORT]`.
        pauses: seconds before each new attempt after a lost connection.

    Raises:
        RemoteError: not an address.
    """

    def __init__(self, address: str, *, pauses: tuple[float, ...] = PAUSES) -> None:
        require_address(address)
        self.address = address
        self._pauses = pauses

    def command(self, script: str) -> list[str]:
        """The local command that runs `script` in the device's `sh` and then prints its status."""
        root = "/data/local/tmp/sb-edge" if self._is_adb else '"$HOME"/sb-edge'
        enter = f"umask 077; mkdir -p {root}/files {root}/runs {root}/chats && cd {root} || exit {NO_FOLDER}"
        whole = f"(\n{enter}\n{script}\n)\nprintf '\\n{STATUS}%d\\n' $?"
        remote = f"exec sh -c {shlex.quote(whole)}"
        if self._is_adb:
            return [*self._adb(), "shell", "-T", remote]
        host, _, port = self.address.removeprefix("ssh:").partition(":")
        options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
        program = shlex.split(os.environ.get("SB_EDGE_SSH", "ssh"))
        return [*program, *options, *(["-p", port] if port else []), "--", host, remote]

    def run(
        self,
        script: str,
        *,
        stdin: IO[bytes] | bytes | None = None,
        limit: int = OUTPUT_LIMIT,
        timeout: float = TIMEOUT,
        on_wait: Callable[[], object] | None = None,
    ) -> Answer:
        """Run `script`; its paths are relative to this project's folder on the device.

        Args:
            script: text for the device's `sh`; whatever is not a constant has been quoted.
            stdin: input of the script.
            limit: bytes of output at most.
            timeout: seconds without output after which the connection counts as lost.
            on_wait: called several times a second; what it returns must change within `timeout`.

        Raises:
            ConnectionLost: the device cannot be reached, or the connection broke.
            RemoteError: more output than `limit`, or adb or ssh is not installed.
        """
        output, errors = self._talk(self.command(script), stdin, limit, timeout, on_wait)
        found = _LAST_LINE.fullmatch(output)
        if found is None:
            reason = errors.decode(errors="replace").strip().splitlines()
            raise ConnectionLost(
                "no answer",
                item=self.address,
                found=reason[-1][:200] if reason else "the connection ended",
                hint="check cable, authorization and network: `adb devices`, or `ssh HOST true`",
            )
        text = found[1].decode(errors="replace")
        return Answer(int(found[2]), text.strip("\n"), errors.decode(errors="replace"))

    def retry(self, action: Callable[[], T]) -> T:
        """Do `action` again as long as the connection is lost; it must be repeatable.

        Raises:
            ConnectionLost: after the last pause.
        """
        for pause in self._pauses:
            try:
                return action()
            except ConnectionLost as error:
                note(f"{error.message} ({error.found}); trying again in {pause:g} s")
                time.sleep(pause)
                self._reconnect()
        return action()

    def ask(self, script: str, *, limit: int = OUTPUT_LIMIT, timeout: float = TIMEOUT) -> str:
        """Output of a repeatable command that must succeed.

        Raises:
            RemoteError: it failed.
        """
        answer = self.retry(lambda: self.run(script, limit=limit, timeout=timeout))
        if answer.status == NO_FOLDER:
            raise RemoteError(
                "cannot make a folder on the device", item=self.address, found=last_line(answer.errors)
            )
        if answer.status != 0:
            raise RemoteError(
                "a command failed on the device",
                item=self.address,
                found=f"status {answer.status}: {last_line(answer.errors) or last_line(answer.output)}",
            )
        return answer.output

    @contextlib.contextmanager
    def process(self, script: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command with open pipes to its input and output; it is stopped at the end of the block."""
        process = self._start(self.command(script), subprocess.PIPE)
        try:
            yield process
        finally:
            stop(process)

    @property
    def _is_adb(self) -> bool:
        return self.address.startswith("adb:")

    def _adb(self) -> list[str]:
        return [*shlex.split(os.environ.get("SB_EDGE_ADB", "adb")), "-s", self.address.removeprefix("adb:")]

    def _reconnect(self) -> None:
        """adb forgets a device on the network when its connection breaks; ssh has nothing to do."""
        if self._is_adb and ":" in self.address.removeprefix("adb:"):
            command = [*self._adb()[:-2], "connect", self.address.removeprefix("adb:")]
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)

    def _start(self, command: list[str], stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            package = "adb" if self._is_adb else "openssh-client"
            raise RemoteError(
                "cannot be started",
                path=command[0],
                found=error.strerror,
                hint=f"install it (Debian, Ubuntu: `apt install {package}`)",
            ) from None

    def _talk(
        self,
        command: list[str],
        stdin: IO[bytes] | bytes | None,
        limit: int,
        timeout: float,
        on_wait: Callable[[], object] | None,
    ) -> tuple[bytes, bytes]:
        source: IO[bytes] | int = subprocess.DEVNULL
        if isinstance(stdin, bytes):
            source = subprocess.PIPE
        elif stdin is not None:
            source = stdin
        process = self._start(command, source)
        try:
            if isinstance(stdin, bytes) and process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(stdin)
                    process.stdin.close()
            return self._collect(process, limit, timeout, on_wait)
        finally:
            stop(process)

    def _collect(
        self,
        process: subprocess.Popen[bytes],
        limit: int,
        timeout: float,
        on_wait: Callable[[], object] | None,
    ) -> tuple[bytes, bytes]:
        texts = {"output": bytearray(), "errors": bytearray()}
        alive, seen = time.monotonic(), None
        with selectors.DefaultSelector() as selector:
            for stream, name in ((process.stdout, "output"), (process.stderr, "errors")):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ, name)
            while selector.get_map():
                ready = selector.select(0.2)
                progress = on_wait() if on_wait else None
                if ready or progress != seen:
                    alive, seen = time.monotonic(), progress
                if time.monotonic() - alive > timeout:
                    return b"", b"no answer for %d seconds" % timeout
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    texts[key.data] += data
                    if len(texts[key.data]) > limit + 100:
                        raise RemoteError(
                            "the device sends too much", item=self.address, expected=f"at most {limit} bytes"
                        )
        return bytes(texts["output"]), bytes(texts["errors"])


def require_address(address: str) -> None:
    """Refuse other text than the address of a device.

    Raises:
        RemoteError: see `ADDRESS`.
    """
    if not ADDRESS.fullmatch(address):
        raise RemoteError(
            "is not an address of a device",
            item=address,
            expected="adb:SERIAL or ssh:[USER@]HOST[:PORT]",
            hint="see `adb devices`, or the Host entries of ~/.ssh/config",
        )


def last_line(text: str) -> str:
    """The last line of a text, at most 200 characters; for messages."""
    return (text.strip().splitlines() or [""])[-1][:200]


def quoted(*arguments: str | Path) -> str:
    """Arguments for the device's shell."""
    return shlex.join(map(str, arguments))
