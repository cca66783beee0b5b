"""adb and ssh as one transport: exit statuses, lost connections, hostile answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from phones import Phone, cable_pulled

from sb_edge.device.pushing import push
from sb_edge.device.transport import ConnectionLost, Transport
from sb_edge.util.errors import RemoteError
from sb_edge.util.hashes import sha256_of

pytestmark = pytest.mark.phone

StartPhone = Callable[..., Phone]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "usb:1",
        "adb:",
        "adb:-s",
        "ssh:-oProxyCommand=x",
        "ssh:a b",
        "ssh:h;id",
        "ssh:u@h:123456",
        "adb:a\nb",
    ],
)
def test_an_address_is_nothing_that_a_program_takes_for_an_option(address: str) -> None:
    with pytest.raises(RemoteError, match="is not an address"):
        Transport(address)


def test_status_output_and_errors_come_back(start_phone: StartPhone, connection: str) -> None:
    transport = start_phone(connection).transport
    answer = transport.retry(lambda: transport.run("echo out; echo err >&2; exit 7"))
    assert (answer.status, answer.output, answer.errors.strip()) == (7, "out", "err")
    assert transport.run("cat", stdin=b"a\0b\xff").output == "a\0b\ufffd"
    with pytest.raises(RemoteError, match="status 3: no such thing"):
        transport.ask("echo no such thing >&2; exit 3")
    with pytest.raises(RemoteError, match="sends too much"):
        transport.run("yes", limit=10000)


def test_a_file_arrives_once_and_whole_whatever_breaks(
    start_phone: StartPhone, connection: str, tmp_path: Path
) -> None:
    phone = start_phone(connection)
    transport = phone.transport
    path = tmp_path / "model.gguf"
    path.write_bytes(random.Random(1).randbytes(24 << 20))
    sha256 = sha256_of(path)
    with cable_pulled(phone, [0.3, 0.2, 0.15, 0.25, 0.2]):
        name = push(transport, path, sha256)
    assert transport.ask("ls files") == sha256
    assert transport.ask(f"sha256sum < {name}").split()[0] == sha256
    transport.ask(f"echo more >> {name}")
    assert push(transport, path, sha256) == name
    assert transport.ask(f"sha256sum < {name}").split()[0] == sha256


def test_an_interrupted_transfer_is_continued(start_phone: StartPhone, tmp_path: Path) -> None:
    transport = start_phone("ssh").transport
    path = tmp_path / "model.gguf"
    path.write_bytes(b"0123456789" * 100)
    sha256 = sha256_of(path)
    transport.ask(f"head -c 400 /dev/zero > files/{sha256}.part")
    # The first half is wrong: it was taken as it is, so the sum differs and the file is sent again.
    assert push(transport, path, sha256) == f"files/{sha256}"
    transport.ask(f"rm files/{sha256}")
    transport.run(f"cat > files/{sha256}.part", stdin=b"0123456789" * 40)
    transport.ask(f"echo $(stat -c %i files/{sha256}.part) > inode")
    assert push(transport, path, sha256) == f"files/{sha256}"
    assert transport.ask(f"[ $(stat -c %i files/{sha256}) = $(cat inode) ] && echo same") == "same"


def test_a_device_that_is_not_there_is_named(ssh_client: object, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = ssh_client  # type: ignore[misc]
    monkeypatch.setenv("SB_EDGE_SSH", client)
    transport = Transport("ssh:127.0.0.1:1", pauses=())
    with pytest.raises(ConnectionLost, match=r"ssh:127.0.0.1:1: no answer \(found .*refused"):
        transport.ask("true")
    monkeypatch.setenv("SB_EDGE_SSH", "no-such-program")
    with pytest.raises(RemoteError, match="cannot be started"):
        transport.ask("true")
