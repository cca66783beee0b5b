"""The device's end of adb's TCP transport, as far as `adb shell` needs it: `python fake_adbd.py ROOT`.

Commands run in ROOT, with `/system/bin/sh` of ROOT if it has one. The port is printed. SIGUSR1 drops all
connections, as a pulled cable does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

CNXN, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
HEADER = struct.Struct("<6I")
MAX_DATA = 1 << 20
BANNER = b"device::ro.product.name=stand_in;ro.product.model=Stand_In;features=shell_v2,cmd,stat_v2"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4


class ClosedError(Exception):
    pass


def shell(root: Path, command: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of a command on the device."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/data/home", "TMPDIR": "/data/local/tmp"}
    if not (root / "system/bin/sh").exists():
        environment["HOME"] = str(root / "data/home")
        return ["sh", "-c", command.replace("/data/local/tmp", str(root / "data/local/tmp"))], environment
    environment["PATH"] = "/system/bin"
    environment["QEMU_CPU"] = os.environ.get("QEMU_CPU", "max")
    return ["/usr/sbin/chroot", str(root), "/system/bin/sh", "-c", command], environment


class Stream:
    """One `shell,v2` stream of a connection."""

    def __init__(self, link: Link, local: int, remote: int) -> None:
        self.link, self.local, self.remote = link, local, remote
        self.arrived: queue.Queue[bytes | None] = queue.Queue()
        self.ready = threading.Semaphore(0)
        self.is_closed = False
        self._buffer = b""

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.arrived.get()
            if data is None:
                raise ClosedError
            self.link.send(OKAY, self.local, self.remote)
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def write(self, kind: int, data: bytes) -> None:
        if self.is_closed:
            raise ClosedError
        self.link.send(WRTE, self.local, self.remote, struct.pack("<BI", kind, len(data)) + data)
        self.ready.acquire()

    def end(self) -> None:
        self.is_closed = True
        self.arrived.put(None)
        self.ready.release()

    def serve(self, root: Path, command: str) -> None:
        arguments, environment = shell(root, command)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(arguments, cwd=root, env=environment, start_new_session=True, **pipes)
        threading.Thread(target=self._feed, args=(process,), daemon=True).start()
        kinds = {process.stdout.fileno(): STDOUT, process.stderr.fileno(): STDERR}
        with contextlib.suppress(ClosedError, OSError):
            while kinds:
                for fd in select.select(list(kinds), [], [])[0]:
                    data = os.read(fd, 1 << 15)
                    if data:
                        self.write(kinds[fd], data)
                    else:
                        del kinds[fd]
            code = process.wait()
            self.write(EXIT, bytes([code if code >= 0 else 128 - code]))
            self.link.send(CLSE, self.local, self.remote)

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        try:
            while True:
                kind, length = struct.unpack("<BI", self.read(5))
                data = self.read(length)
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    process.stdin.close()
        except (ClosedError, OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                process.stdin.close()
            if process.poll() is None and self.is_closed:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGHUP)  # as adbd does


class Link:
    """One connection of an adb server."""

    def __init__(self, connection: socket.socket, root: Path) -> None:
        self.socket, self.root = connection, root
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}

    def send(self, command: int, arg0: int, arg1: int, data: bytes = b"") -> None:
        checksum = sum(data) & 0xFFFFFFFF if command == CNXN else 0
        head = HEADER.pack(command, arg0, arg1, len(data), checksum, command ^ 0xFFFFFFFF)
        try:
            with self._lock:
                self.socket.sendall(head + data)
        except OSError:
            raise ClosedError from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(min(size - len(data), 1 << 20))
            if not part:
                raise ClosedError
            data += part
        return bytes(data)

    def run(self) -> None:
        with contextlib.suppress(ClosedError, OSError):
            while True:
                command, arg0, arg1, length, _, _ = HEADER.unpack(self._exactly(HEADER.size))
                self._handle(command, arg0, arg1, self._exactly(length))
        self.socket.close()
        for stream in list(self._streams.values()):
            stream.end()

    def _handle(self, command: int, arg0: int, arg1: int, data: bytes) -> None:
        if command == CNXN:
            self.send(CNXN, 0x01000001, MAX_DATA, BANNER)
        elif command == OPEN:
            service, _, text = data.rstrip(b"\0").decode().partition(":")
            if not service.startswith("shell,v2"):
                self.send(CLSE, 0, arg0)
                return
            stream = self._streams[arg0] = Stream(self, arg0, arg0)
            self.send(OKAY, arg0, arg0)
            threading.Thread(target=stream.serve, args=(self.root, text), daemon=True).start()
        elif (stream := self._streams.get(arg1)) is not None:
            if command == WRTE:
                stream.arrived.put(data)
            elif command == OKAY:
                stream.ready.release()
            elif command == CLSE:
                del self._streams[arg1]
                stream.end()


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    links: list[Link] = []

    def drop(*_: object) -> None:
        for link in links:
            with contextlib.suppress(OSError):
                link.socket.shutdown(socket.SHUT_RDWR)
        links.clear()

    signal.signal(signal.SIGUSR1, drop)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            links.append(Link(connection, root))
            threading.Thread(target=links[-1].run, daemon=True).start()


if __name__ == "__main__":
    main()
