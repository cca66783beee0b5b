from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sb_edge.system.cpu import default_threads, fast_cpus, kept_on, physical_cores, usable_cpus


def machine(
    root: Path,
    cores: Sequence[str],
    *,
    capacity: Sequence[int] = (),
    mhz: Sequence[int] = (),
    siblings: str = "core_cpus_list",
    files: Mapping[str, str] | None = None,
) -> Path:
    """A tree as the kernel shows it: `cores` are lists of CPUs ("0-1"), the others a value for each core."""
    for index, cpus in enumerate(cores):
        first, _, last = cpus.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            folder = root / f"sys/devices/system/cpu/cpu{cpu}"
            (folder / "topology").mkdir(parents=True)
            (folder / "topology" / siblings).write_text(f"{cpus}\n")
            if capacity:
                (folder / "cpu_capacity").write_text(f"{capacity[index]}\n")
            if mhz:
                (folder / "cpufreq").mkdir()
                (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{mhz[index]}000\n")
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


HYPER_THREADED = ["0-1", "2-3", "4-5", "6-7"]
HYBRID = ["0-1", "2-3", "4", "5", "6", "7"]
PERFORMANCE = {"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-7\n"}
PHONE = [str(cpu) for cpu in range(8)]


@pytest.mark.parametrize("siblings", ["core_cpus_list", "thread_siblings_list"])
def test_two_threads_of_a_core_count_once(tmp_path: Path, siblings: str) -> None:
    root = machine(tmp_path, HYPER_THREADED, siblings=siblings)
    assert default_threads(root, set(range(8))) == 4
    assert fast_cpus(4, root, set(range(8))) is None


@pytest.mark.parametrize(("usable", "expected"), [({0, 1}, 1), ({1, 2, 3}, 2), ({0, 2, 5}, 3), ({6}, 1)])
def test_only_cores_that_the_process_may_use_count(tmp_path: Path, usable: set[int], expected: int) -> None:
    root = machine(tmp_path, HYPER_THREADED)
    assert default_threads(root, usable) == expected
    assert frozenset[int]().union(*physical_cores(root, usable)) == usable


def test_of_a_hybrid_processor_the_performance_cores_count(tmp_path: Path) -> None:
    root = machine(tmp_path, HYBRID, capacity=[1024, 1024, 800, 800, 800, 800], files=PERFORMANCE)
    assert default_threads(root, set(range(8))) == 2
    assert fast_cpus(2, root, set(range(8))) == {0, 1, 2, 3}
    assert fast_cpus(1, root, set(range(8))) == {0, 1, 2, 3}
    assert fast_cpus(3, root, set(range(8))) is None  # more than they are: anywhere


def test_without_performance_cores_the_others_do(tmp_path: Path) -> None:
    root = machine(tmp_path, HYBRID, files=PERFORMANCE)
    assert default_threads(root, {4, 5, 6, 7}) == 4
    assert default_threads(root, {2, 4, 5, 6, 7}) == 1


@pytest.mark.parametrize(
    ("capacity", "fast"),
    [
        ([300, 300, 300, 300, 870, 870, 870, 1024], {4, 5, 6, 7}),
        ([400, 400, 400, 400, 400, 400, 1024, 1024], range(8)),  # 8 * 400 > 2 * 1024
        ([250, 250, 250, 250, 250, 250, 1024, 1024], {6, 7}),
        ([160, 160, 160, 160, 498, 498, 1024, 1024], {6, 7}),
        ([700, 700, 700, 700, 1024, 1024, 1024, 1024], range(8)),
        ([1024] * 8, range(8)),
    ],
)
def test_cores_of_a_phone_are_left_out_where_they_hold_up_the_others(
    tmp_path: Path, capacity: list[int], fast: Sequence[int]
) -> None:
    root = machine(tmp_path, PHONE, capacity=capacity)
    cpus = fast_cpus(default_threads(root, set(range(8))), root, set(range(8)))
    assert (cpus or set(range(8))) == set(fast)
    assert default_threads(root, set(range(8))) == len(fast)


def test_frequencies_decide_where_there_is_no_capacity(tmp_path: Path) -> None:
    root = machine(tmp_path, HYBRID, mhz=[5000, 5000, 1000, 1000, 1000, 1000])
    assert fast_cpus(2, root, set(range(8))) == {0, 1, 2, 3}


def test_favoured_cores_are_not_alone(tmp_path: Path) -> None:
    """A few cores of a desktop processor may clock a little higher than the others."""
    root = machine(tmp_path, HYPER_THREADED, mhz=[5200, 5200, 5000, 5000])
    assert default_threads(root, set(range(8))) == 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "max 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/app\n0::/\n",
                "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_a_quota_limits_the_threads(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert default_threads(machine(tmp_path, HYPER_THREADED, files=files), set(range(8))) == expected


def test_without_the_kernels_files_there_is_a_core_to_run_on(tmp_path: Path) -> None:
    assert 1 <= default_threads(tmp_path) <= len(usable_cpus())
    assert fast_cpus(1, tmp_path) is None


def test_this_machine() -> None:
    assert 1 <= default_threads() <= len(physical_cores()) <= len(usable_cpus())


REPORT = "import os; print(*os.sched_getaffinity(0))"


def test_what_begins_meanwhile_is_kept_on_the_cpus() -> None:
    before = usable_cpus()
    chosen = {max(before)}
    with kept_on(chosen):
        done = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True)
        assert os.sched_getaffinity(0) == chosen
    assert {int(cpu) for cpu in done.stdout.split()} == chosen
    assert usable_cpus() == before


def test_cpus_that_are_gone_are_no_error() -> None:
    before = usable_cpus()
    with kept_on({max(before) + 500}):
        assert usable_cpus() == before
    assert usable_cpus() == before


def test_nothing_to_keep_on() -> None:
    with kept_on(None):
        assert usable_cpus()
