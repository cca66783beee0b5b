"""What the engine's sparse products did: its counters."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

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
    _fields_ = [(field.name, ctypes.c_int64) for field in fields(SparseCounts)]


@contextmanager
def count_products() -> Iterator[Callable[[], SparseCounts]]:
    """Count from here on; the yielded function says how many so far. One set of counters for the process.

    Raises:
        InferenceError: the engine has no sparse products.
    """
    cpu_function("sb_sparse_counters_reset", None)()
    get = cpu_function("sb_sparse_counters_get", None, ctypes.c_void_p)

    def counts() -> SparseCounts:
        raw = _Counters()
        get(ctypes.addressof(raw))
        return SparseCounts(*(getattr(raw, field.name) for field in fields(SparseCounts)))

    yield counts
