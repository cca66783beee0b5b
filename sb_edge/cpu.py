"""How many threads to use."""

from __future__ import annotations

import os

import psutil


def default_threads() -> int:
    """Physical cores that this process may run on.

    Decoding is bound by memory, and two threads on one core share its port to it.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
