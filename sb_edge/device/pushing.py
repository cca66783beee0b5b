"""Files on a device, kept under their SHA-256: resumable and checked."""

from __future__ import annotations

import os
from pathlib import Path

from sb_edge.device.transport import Transport, last_line
from sb_edge.util.errors import RemoteError
from sb_edge.util.output import format_bytes
from sb_edge.util.progress import progress_bar

RESERVE = 64 << 20
"""Bytes that stay free on the device."""

HASH_TIMEOUT = 900.0
"""Seconds that a device may take to hash a file."""

# A `cat` of an earlier connection may still append: it is ended before the size is read.
_PREPARE = """
part=files/{sha}.part
if [ -e files/{sha} ]; then echo present; exit 0; fi
if [ -e $part.pid ]; then
    old=$(cat $part.pid)
    if grep -q '^cat' /proc/$old/cmdline 2>/dev/null; then
        kill -9 $old
        for i in 1 2 3 4 5 6 7 8 9; do [ -e /proc/$old ] && sleep 0.1; done
    fi
fi
[ -e $part ] && stat -c %s $part || echo 0
df -k . | tail -n 1
"""

_APPEND = """
part=files/{sha}.part
exec sh -c 'echo $$ > $0.pid; exec cat >> $0' $part
"""

_FINISH = """
part=files/{sha}.part
set -- $(sha256sum < $part)
if [ "$1" != {sha} ]; then rm -f $part $part.pid; echo differs; exit 0; fi
chmod {mode} $part && sync && mv -f $part files/{sha} && rm -f $part.pid && echo stored
"""

_CHECK = """
set -- $(sha256sum < files/{sha})
if [ "$1" = {sha} ]; then echo stored; else rm -f files/{sha}; echo differs; fi
"""


def push(transport: Transport, path: Path, sha256: str, *, executable: bool = False) -> str:
    """Send a file, or the rest of it; return its name on the device.

    A lost connection is taken up again. The file appears under its name only after its SHA-256 has been
    compared on the device; a copy that is there already is compared as well.

    Args:
        transport: the device.
        path: the file.
        sha256: SHA-256 of its content.
        executable: Make it executable.

    Raises:
        RemoteError: too little space, no connection, or the content differs even after a second transfer.
    """
    for _ in range(2):
        if transport.retry(lambda: _send(transport, path, sha256)):
            check = _CHECK.format(sha=sha256)
        else:
            check = _FINISH.format(sha=sha256, mode="700" if executable else "600")
        if transport.ask(check, timeout=HASH_TIMEOUT) == "stored":
            return f"files/{sha256}"
    raise RemoteError(
        "arrives damaged", path=path, item=transport.address, hint="check the device's storage and the cable"
    )


def _send(transport: Transport, path: Path, sha256: str) -> bool:
    """Send the part of the file that is missing; True: the device has the file already."""
    answer = transport.run(_PREPARE.format(sha=sha256))
    if answer.output == "present":
        return True
    size = path.stat().st_size
    present, free = _parse_place(transport, answer.output)
    if present > size:
        transport.run(f"rm -f files/{sha256}.part")
        present = 0
    if free < size - present + RESERVE:
        raise RemoteError(
            "too little space on the device",
            item=transport.address,
            found=format_bytes(free),
            expected=f"{format_bytes(size - present + RESERVE)} for {path.name}",
            hint="`sb-edge device remove NAME --files` removes everything that was pushed",
        )
    with (
        path.open("rb") as source,
        progress_bar(f"pushing {path.name}", size, unit="bytes") as advance,
    ):
        source.seek(present)
        advance(present)
        shown = present

        def position() -> int:
            nonlocal shown
            now = os.lseek(source.fileno(), 0, os.SEEK_CUR)  # shared with the program that sends
            advance(now - shown)
            shown = now
            return now

        answer = transport.run(_APPEND.format(sha=sha256), stdin=source, on_wait=position)
    if answer.status != 0:
        raise RemoteError(
            "cannot be written on the device", item=transport.address, found=last_line(answer.errors)
        )
    return False


def _parse_place(transport: Transport, text: str) -> tuple[int, int]:
    """Size of the partial file and free space, bytes."""
    try:
        size, filesystem = text.splitlines()
        present, free = int(size), int(filesystem.split()[-3]) << 10
    except (ValueError, IndexError):
        raise RemoteError(
            "answers with something else than a size and free space",
            item=transport.address,
            found=repr(text[:80]),
        ) from None
    return present, free


def fetch_text(transport: Transport, name: str, limit: int) -> str:
    """A text file of this project's folder on the device; "" if it does not exist.

    Raises:
        RemoteError: longer than `limit` bytes, or no connection.
    """
    return transport.ask(f"[ ! -e {name} ] || cat {name}", limit=limit)
