"""Output files: complete or not at all, through links, and to devices and FIFOs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from sb_edge.util.errors import OutputError
from sb_edge.util.files import (
    atomic_directory,
    atomic_files,
    atomic_output,
    remove_abandoned,
    require_output,
    scratch_folder,
    sync_tree,
)
from sb_edge.util.hashes import sha256_of, sha256_of_bytes

Atomic = Callable[[Path], AbstractContextManager[Path]]


@pytest.mark.parametrize("atomic", [atomic_output, atomic_files, atomic_directory])
def test_nothing_is_left_of_an_interrupted_write(atomic: Atomic, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if atomic is not atomic_directory:
        target.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), atomic(target) as partial:
        (partial / "part" if partial.is_dir() else partial).write_text("half")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if atomic is atomic_directory else ["out"])
    if target.exists():
        assert target.read_text() == "earlier"


def test_a_file_a_folder_and_parts_appear_when_complete(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "file") as partial:
        partial.write_text("whole")
        assert list(tmp_path.iterdir()) == [partial]
    with atomic_directory(tmp_path / "folder") as partial:
        (partial / "inside").write_text("whole")
        assert not (tmp_path / "folder").exists()
    with atomic_files(tmp_path / "parts") as partial:
        for name in ("parts-1", "parts-2"):
            (partial / name).write_text("whole")
    names = {"file", "folder", "parts-1", "parts-2"}
    assert {entry.name for entry in tmp_path.iterdir()} == names
    assert (tmp_path / "folder" / "inside").read_text() == "whole"


@pytest.mark.parametrize("atomic", [atomic_output, atomic_files])
def test_a_device_is_written_to(atomic: Atomic, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    for name in (tmp_path / "link", Path("/dev/null")):
        with atomic(name) as partial:
            (partial / name.name if partial.is_dir() else partial).write_text("whole")
    assert Path("/dev/null").is_char_device()
    assert [entry.name for entry in tmp_path.iterdir()] == ["link"]


def test_a_full_device_is_an_error() -> None:
    with pytest.raises(OutputError, match=r"/dev/full: no space left"), atomic_output(Path("/dev/full")) as p:
        p.write_text("whole")
    assert Path("/dev/full").is_char_device()


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        with atomic_output(fifo) as partial:
            partial.write_bytes(b"whole" * 1000)
        assert reader.communicate(timeout=30)[0] == b"whole" * 1000
    assert fifo.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["fifo"]


def test_a_pipe_that_standard_output_leads_to_is_written_to() -> None:
    code = """
from pathlib import Path
from sb_edge.util.files import atomic_output
with atomic_output(Path("/dev/stdout")) as partial:
    partial.write_text("whole")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "whole"


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OutputError, match="is not a regular file"), atomic_output(tmp_path / "socket"):
            pass
    assert (tmp_path / "socket").is_socket()


def test_a_part_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "parts-2").mkdir()
    with pytest.raises(OutputError, match=r"parts-2: is a folder"), atomic_files(tmp_path / "p") as p:
        for name in ("parts-1", "parts-2"):
            (p / name).write_text("whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["parts-2"]


def test_an_input_is_not_replaced_under_another_name(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("input")
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link"):
        with pytest.raises(OutputError, match="is the input"):
            require_output(target, [source])
    require_output(source, [tmp_path])


def test_the_target_of_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for number, text in enumerate(("new", "newer")):
        link = tmp_path / f"link-{number}"
        link.symlink_to(tmp_path / "there" / "file")  # absent at first
        with atomic_output(link) as partial:
            partial.write_text(text)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file").read_text() == text
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=r"loop: cannot be written"), atomic_output(tmp_path / "loop"):
        pass


def test_an_earlier_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "private").touch(mode=0o600)
    with atomic_output(tmp_path / "private") as partial:
        partial.write_text("new")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_a_file_that_does_not_read_back_gets_no_name(tmp_path: Path) -> None:
    def check(partial: Path) -> None:
        if partial.read_text() != "whole":
            raise OutputError("differs from the text", path=tmp_path / "out")

    (tmp_path / "out").write_text("earlier")
    for text, kept in (("half", "earlier"), ("whole", "whole")):
        with suppress(OutputError), atomic_output(tmp_path / "out", check=check) as partial:
            partial.write_text(text)
        assert (tmp_path / "out").read_text() == kept
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


BEGIN_AND_WAIT = """
import sys
from pathlib import Path
from sb_edge.util.files import atomic_directory, atomic_output
here = Path(sys.argv[1])
with atomic_output(here / "file") as file, atomic_directory(here / "folder") as folder:
    file.write_text("half")
    (folder / "inside").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN_AND_WAIT, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as living:
        for process in (killed, living):
            assert process.stdout is not None
            process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 4
        killed.kill()
        killed.wait()
        # The number of the living process, as another one had it earlier.
        reused = next(tmp_path.glob(f".file.partial-{living.pid}-*")).name.split("-")
        (tmp_path / "-".join([*reused[:2], "1", *reused[3:]])).touch()
        with atomic_output(tmp_path / "other") as partial:
            partial.write_text("whole")
        living.communicate(timeout=30)
    assert {entry.name for entry in tmp_path.iterdir()} == {"other", "file", "folder"}


def test_leftovers_of_another_machine_are_removed_after_a_day(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f".{name}.partial-1-1-0123456789ab-0").touch()
    os.utime(tmp_path / ".old.partial-1-1-0123456789ab-0", (0, 0))
    remove_abandoned(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".new.partial-1-1-0123456789ab-0"]


def test_a_scratch_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "model") as folder, atomic_output(tmp_path / "model") as partial:
        (folder / "work").write_text("whole")
        (folder / "work").replace(partial)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_every_file_and_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("whole")
    (inner / "nowhere").symlink_to("absent")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    sync_tree(tmp_path / "folder")
    assert set(synced) == {path.stat().st_ino for path in (tmp_path / "folder", inner, inner / "file")}


def test_hashes_join_their_parts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"a")
    second.write_bytes(b"bc" * 2**20)
    # sha256sum of "abc", by FIPS 180-4's example
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_bytes(b"abc") == sha256_of_bytes(b"a", b"", b"bc") == expected
    assert sha256_of(first, second) == sha256_of_bytes(b"a", b"bc" * 2**20)
