"""Phones in namespaces, reached by real clients of adb and ssh."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_phone import FakePhone
from phones import HERE, PAUSES, QEMU, Phone, require

from sb_edge.device.transport import Transport


@pytest.fixture(scope="session")
def adb_server() -> Iterator[str]:
    """The real adb, with a server of its own."""
    adb = shutil.which("adb")
    if adb is None:
        adbutils = pytest.importorskip("adbutils", reason="neither adb nor adbutils is installed")
        adb = adbutils.adb_path()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"{shlex.quote(str(adb))} -P {port}"
    yield command
    subprocess.run([*shlex.split(command), "kill-server"], capture_output=True, check=False)


@pytest.fixture(scope="session")
def ssh_client(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The real ssh with a key of its own, and the public key."""
    require("ssh", "ssh-keygen")
    pytest.importorskip("asyncssh", reason="asyncssh is not installed")
    folder = tmp_path_factory.mktemp("ssh")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = folder / "config"
    config.write_text(
        f"IdentityFile {key}\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
        f"UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    return f"ssh -F {config}", key.with_suffix(".pub")


@pytest.fixture(params=["adb", "ssh"])
def connection(request: pytest.FixtureRequest) -> str:
    """Both transports; adb or ssh."""
    return str(request.param)


@pytest.fixture(scope="session")
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where this user cannot make what a phone lives in; whatever fails beyond it is a failure."""
    require("toybox", "mksh-static", QEMU, "unshare")
    root = tmp_path_factory.mktemp("namespace")
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    command = [*inside, "sh", "-ec", _MOUNTS, "sh", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no namespaces with binfmt_misc: {done.stderr.strip()}")


@pytest.fixture
def start_phone(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, namespaces: None
) -> Iterator[Callable[..., Phone]]:
    """A function that starts a phone: `start_phone("adb", "two of eight")`."""
    running: list[subprocess.Popen[bytes]] = []

    def start(connection: str, name: str = "two of eight") -> Phone:
        fake = FakePhone(tmp_path / f"phone{len(running)}", name)
        if connection == "adb":
            monkeypatch.setenv("SB_EDGE_ADB", request.getfixturevalue("adb_server"))
            server = [sys.executable, HERE / "fake_adbd.py"]
        else:
            client, key = request.getfixturevalue("ssh_client")
            monkeypatch.setenv("SB_EDGE_SSH", client)
            server = [sys.executable, "-c", _SSHD, HERE, key]
        process = subprocess.Popen(
            ["sh", HERE / "namespace.sh", fake.root, *server],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "QEMU_CPU": fake.qemu_cpu},
        )
        running.append(process)
        port = (process.stdout.readline() if process.stdout else b"").strip().decode()
        if not port:
            process.kill()
            pytest.fail(f"no phone: {process.communicate()[1].decode(errors='replace').strip()}")
        user = f"{os.environ.get('USER', 'user')}@"
        address = f"adb:127.0.0.1:{port}" if connection == "adb" else f"ssh:{user}127.0.0.1:{port}"
        return Phone(fake, Transport(address, pauses=PAUSES), process)

    yield start
    for process in running:
        process.kill()
        process.communicate()


_MOUNTS = """
mount -t tmpfs phone "$1"
cd "$1"
mkdir binfmt proc
mount -t binfmt_misc binfmt binfmt
mount -t proc proc proc
"""

_SSHD = """
import runpy, sys
here, key, root = sys.argv[1:]
sys.path.insert(0, here)
sys.argv = ["fake_sshd.py", root, key]
runpy.run_path(here + "/fake_sshd.py", run_name="__main__")
"""
