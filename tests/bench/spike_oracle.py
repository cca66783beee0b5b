"""The engine's counters in plain numpy: the oracle that they are compared with, and a maker of test data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sb_edge.arch.coding import Coding, encode, steps
from sb_edge.runtime.spike_counters import BINS, SiteCounts


def count(
    counts: NDArray[np.int32],
    *,
    layer: int = 0,
    projections: tuple[str, ...] = ("attn_q",),
    k: float = 3.0,
    threshold_sum: float = 1.0,
) -> SiteCounts:
    """What the counters must say of counts [tokens, channels], from the trains themselves."""
    size = np.abs(counts.astype(np.int64))
    bits = np.vectorize(lambda value: int(value).bit_length(), otypes=[np.int64])(size)
    spikes = dict.fromkeys(Coding, 0)
    time = dict.fromkeys(Coding, 0)
    for row in counts:
        for coding in (Coding.TERNARY, Coding.BIDIRECTIONAL, Coding.TWOS_COMPLEMENT):
            needed = steps(coding, int(np.abs(row.astype(np.int64)).max()))
            spikes[coding] += int(np.abs(encode(row, coding, needed).astype(np.int64)).sum())
            time[coding] += needed
    return SiteCounts(
        layer=layer,
        projections=projections,
        k=k,
        channels=counts.shape[1],
        tokens=counts.shape[0],
        histogram=np.bincount(np.minimum(size, BINS - 1).ravel(), minlength=BINS).astype(np.int64),
        largest=int(size.max()),
        negative=int((counts < 0).sum()),
        bursts=int((size > 127).sum()),
        threshold_sum=threshold_sum,
        unary_spikes=spikes[Coding.TERNARY],
        bit_spikes=spikes[Coding.BIDIRECTIONAL],
        twos_complement_spikes=spikes[Coding.TWOS_COMPLEMENT],
        unary_steps=time[Coding.TERNARY],
        bit_steps=time[Coding.BIDIRECTIONAL],
        twos_complement_steps=time[Coding.TWOS_COMPLEMENT],
        window_slots=int((3 * np.maximum(1, -(-bits // 3))).sum()),
    )
