"""A stand-in for Termux's sshd: `python fake_sshd.py ROOT CLIENT_KEY.pub`; the port is printed.

SIGUSR1 drops all connections.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncssh
from fake_adbd import shell

ROOT, KEY = Path(sys.argv[1]).resolve(), sys.argv[2]
connections: set[asyncssh.SSHServerConnection] = set()


class Server(asyncssh.SSHServer):
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        connections.add(conn)


async def serve(process: asyncssh.SSHServerProcess) -> None:
    arguments, environment = shell(ROOT, process.command or "exit 1")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    child = await asyncio.create_subprocess_exec(
        *arguments, cwd=ROOT, env=environment, start_new_session=True, **pipes
    )
    try:
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        code = await child.wait()
        await process.stdout.drain()
        await process.stderr.drain()
        process.exit(code if code >= 0 else 128 - code)
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGHUP)


def drop() -> None:
    for connection in connections:
        connection.abort()
    connections.clear()


async def main() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, drop)
    server = await asyncssh.create_server(
        Server,
        "127.0.0.1",
        0,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        authorized_client_keys=KEY,
        process_factory=serve,
        encoding=None,
    )
    print(server.get_port(), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
