"""The engine's server as a real process on a free port of loopback."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb_edge.engine import find_engine

START_TIMEOUT = 120  # seconds
REQUEST_TIMEOUT = 300


@dataclass
class RunningServer:
    """llama-server with one model.

    Attributes:
        port: of 127.0.0.1.
        process: the server itself.
    """

    port: int
    process: subprocess.Popen[bytes]

    def request(
        self, method: str, route: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer (header names in lower case)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT)
        try:
            connection.request(method, route, body, headers or {})
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer.read(), named
        finally:
            connection.close()

    def ask(self, route: str, document: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question in JSON."""
        status, body, _ = self.request(
            "POST", route, json.dumps(document), {"Content-Type": "application/json"}
        )
        assert status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def is_healthy(self) -> bool:
        """Whether it says that it is ready."""
        return self.request("GET", "/health")[0] == 200


@contextmanager
def running_server(model: Path, options: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Start the server, wait until it is ready, stop it in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [find_engine().tool("llama-server"), "-m", model, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--offline", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            server = RunningServer(port, process)
            deadline = time.monotonic() + START_TIMEOUT
            while True:
                assert process.poll() is None, f"llama-server ended with {process.returncode}"
                assert time.monotonic() < deadline, "llama-server does not start"
                try:
                    if server.is_healthy():
                        break
                except OSError:
                    pass
                time.sleep(0.05)
            yield server
        finally:
            process.terminate()
