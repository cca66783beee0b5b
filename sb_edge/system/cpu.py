"""Number of threads, and the cores to run them on: the fast cores of a processor that also has slower ones.

This module reads the kernel's files because psutil counts the cores of the whole machine, not those available
to this process, and does not distinguish fast cores from slow ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from sb_edge.system.cgroup import Group, groups

_ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"
_PERFORMANCE_CORES = "sys/devices/cpu_core/cpus"

Core = frozenset[int]
"""The logical CPUs of a physical core that this process may run on."""

MAX_THREADS = 512
"""Limit of the engine (GGML_MAX_N_THREADS), which it does not check."""


def usable_cpus() -> frozenset[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def default_threads(root: Path = _ROOT, usable: Set[int] | None = None) -> int:
    """Number of fast cores available to this process, within the quota of its control group.

    Decoding is memory-bound, and two threads on one core share its memory port.

    Args:
        root: folder in which `proc` and `sys` are mounted.
        usable: None: `usable_cpus()`.
    """
    count = len(fast_cores(physical_cores(root, usable), root))
    quota = min((_quota(group) for group in groups("cpu", root)), default=float("inf"))
    return max(1, int(min(count, quota)))


def fast_cpus(n_threads: int, root: Path = _ROOT, usable: Set[int] | None = None) -> frozenset[int] | None:
    """CPUs to pin threads to: the fast cores if there are enough; None if pinning has no benefit.

    Args:
        n_threads: number of threads of the engine.
        root, usable: as in `default_threads`.
    """
    cores = physical_cores(root, usable)
    fast = fast_cores(cores, root)
    return frozenset[int]().union(*fast) if n_threads <= len(fast) < len(cores) else None


@contextmanager
def kept_on(cpus: Set[int] | None) -> Iterator[None]:
    """Pin this thread, and threads started in the block, to some CPUs; None: do not pin.

    Best effort: a phone may have taken these CPUs offline.
    """
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def physical_cores(root: Path = _ROOT, usable: Set[int] | None = None) -> list[Core]:
    """The physical cores available to this process.

    Args:
        root, usable: as in `default_threads`.
    """
    allowed = usable_cpus() if usable is None else frozenset(usable)
    if not (root / _CPUS / f"cpu{min(allowed)}" / "topology").is_dir():
        count = min(psutil.cpu_count(logical=False) or len(allowed), len(allowed))
        return [Core({cpu}) for cpu in sorted(allowed)[:count]]
    cores = {Core(_siblings(root, cpu) & allowed) | {cpu} for cpu in allowed}
    return sorted(cores, key=min)


def fast_cores(cores: list[Core], root: Path = _ROOT) -> list[Core]:
    """The subset of `cores` that is fastest together.

    An operation is divided evenly, so n cores run at n times the speed of the slowest: slow cores are left
    out if they would delay the others. On a hybrid x86 processor these are the performance cores; elsewhere,
    cores are compared by the kernel's `cpu_capacity`, or by frequency if there is none.

    Args:
        cores: at least one.
        root: as in `default_threads`.
    """
    performance = _cpu_list(_read(root / _PERFORMANCE_CORES))
    named = [core for core in cores if core & performance]
    if named:
        return named
    for fact in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        texts = [_read(root / _CPUS / f"cpu{min(core)}" / fact) for core in cores]
        if all(text.isdigit() for text in texts):
            paces = [int(text) for text in texts]
            ordered = sorted(paces, reverse=True)
            slowest = ordered[max(range(len(ordered)), key=lambda last: (last + 1) * ordered[last])]
            return [core for core, pace in zip(cores, paces, strict=True) if pace >= slowest]
    return cores


def _siblings(root: Path, cpu: int) -> frozenset[int]:
    """CPUs on the same core; kernels before 5.3 have only the second file."""
    topology = root / _CPUS / f"cpu{cpu}" / "topology"
    return _cpu_list(_read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list"))


def _quota(group: Group) -> float:
    """CPU time of a group, in CPUs."""
    if group.version == 2:
        quota, _, period = group.text("cpu.max").partition(" ")
        return int(quota) / int(period) if quota.isdigit() else float("inf")
    limit, length = group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")
    return limit / length if limit and length else float("inf")


def _cpu_list(text: str) -> frozenset[int]:
    """CPUs in the kernel's notation: "0-3,8" is CPUs 0, 1, 2, 3 and 8."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _read(file: Path) -> str:
    """A file's line; "" if it does not exist or cannot be read, as on some phones."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
