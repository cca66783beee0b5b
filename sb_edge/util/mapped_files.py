"""A mapped file that shrinks, or whose disk fails: the kernel sends SIGBUS to whoever reads the page."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from sb_edge.util.errors import printable


def exit_on_bus_error() -> None:
    """From now on a SIGBUS of this process is an error line and exit status 1."""
    if hasattr(signal, "SIGBUS"):  # Python's own handlers run after the instruction that cannot end
        ctypes.CDLL(None).signal(signal.SIGBUS, _on_bus_error)


def _shrunk_files() -> list[str]:
    """Files of which this process maps more than there is; Linux alone tells."""
    found = []
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        span, mode, offset, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(bound, 16) for bound in span.split("-"))
        if mode.endswith("s") and name and Path(name[0]).is_file():  # libraries are mapped privately
            size = Path(name[0]).stat().st_size
            if int(offset, 16) + end - begin - os.sysconf("SC_PAGE_SIZE") >= size:
                found.append(name[0])
    return found


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_bus_error(_number: int) -> None:
    try:
        names = ", ".join(_shrunk_files())
    except OSError:
        names = ""
    problem = "became shorter while it was read" if names else "a file in use cannot be read any more"
    os.write(2, f"error: {printable(names)}{': ' * bool(names)}{problem}\n".encode(errors="replace"))
    os._exit(1)
