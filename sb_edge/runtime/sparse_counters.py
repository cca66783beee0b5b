"""What the engine's sparse products did: its counters."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sb_edge.runtime.binding import cpu_function


@dataclass(frozen=True)
class SparseCounts:
    """Products of projections with a sparse layout, one a projection and token.

    Attributes:
        products: all of them.
        dense: of those, computed by rows, since too many channels were active.
        channels: of their inputs, all together.
        active: of those, not silent.
    """

    products: int
    dense: int
    channels: int
    active: int

    @property
    def silent_share(self) -> float:
        """Share of the channels; 0 without channels."""
        return 1 - self.active / self.channels if self.channels else 0.0

    @property
    def dense_share(self) -> float:
        """Share of the products; 0 without products."""
        return self.dense / self.products if self.products else 0.0


class _Counters(ctypes.Structure):
    _fields_ = [
        ("products", ctypes.c_int64),
        ("dense", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("active", ctypes.c_int64),
    ]


@contextmanager
def count_products() -> Iterator[Callable[[], SparseCounts]]:
    """Count from here on; the yielded function says how many so far. One set of counters for the process.

    Raises:
        InferenceError: the engine has no sparse products.
    """
    ctypes.CFUNCTYPE(None)(cpu_function("sb_sparse_counters_reset"))()
    get = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(cpu_function("sb_sparse_counters_get"))

    def counts() -> SparseCounts:
        raw = _Counters()
        get(ctypes.addressof(raw))
        return SparseCounts(raw.products, raw.dense, raw.channels, raw.active)

    yield counts
