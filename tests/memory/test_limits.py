"""Under a real memory limit: refused with the figures, or done; never killed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import SB_EDGE

pytestmark = pytest.mark.engine

ROOTS = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}


@pytest.fixture
def group() -> Iterator[tuple[Path, str]]:
    """A control group of our own, and the name of its limit."""
    for root, limit in ROOTS.items():
        folder = root / f"sb-edge-test-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                if (folder / limit).is_file():
                    yield folder, limit
                    return
            finally:
                folder.rmdir()
    pytest.skip("control groups cannot be made here")


def confined(group: tuple[Path, str], mib: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    folder, limit = group
    (folder / limit).write_text(str(mib << 20))
    return subprocess.run(
        ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh", *SB_EDGE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mib", [120, 200, 260, 320])
def test_a_transplant(mib: int, group: tuple[Path, str], tmp_path: Path) -> None:
    done = confined(group, mib, "transplant", "default-base", "-o", tmp_path / "student")
    assert done.returncode in (0, 1), done.returncode
    assert (tmp_path / "student").exists() == (done.returncode == 0)
    assert done.returncode == 0 or "will not fit in memory" in done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mib", [200, 260, 320, 400])
def test_a_benchmark(mib: int, group: tuple[Path, str]) -> None:
    line = ("bench", "decode", "default", "--baseline", "none", "-d", "0,512", "-n", "2", "-r", "1")
    done = confined(group, mib, *line)
    assert done.returncode in (0, 1), done.returncode
    assert done.returncode == 0 or "will not fit in memory" in done.stderr
