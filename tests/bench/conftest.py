from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sb_edge.bench.rows.row import Row
from sb_edge.bench.rows.timing import summarize
from sb_edge.bench.speed import bandwidth

MIB = 2**20


def example_row(**changes: Any) -> Row:
    """A row as a measurement of 32 tokens at 10 tokens per second leaves it."""
    timing = summarize([3_000_000_000, 3_200_000_000, 3_600_000_000], 32)
    fields: dict[str, Any] = {
        "build_commit": "0c1e570",
        "cpu_info": "a processor",
        "backends": "CPU",
        "model_filename": "model.gguf",
        "model_type": "llama 1B Q4_0",
        "model_size": 700 * MIB,
        "model_n_params": 1_235_814_400,
        "n_batch": 512,
        "n_ubatch": 512,
        "n_threads": 2,
        "type_k": "f16",
        "type_v": "f16",
        "flash_attn": -1,
        "n_prompt": 0,
        "n_gen": 32,
        "n_depth": 4096,
        "test_time": "2026-01-01T00:00:00Z",
        "avg_ns": timing.avg_ns,
        "stddev_ns": timing.stddev_ns,
        "avg_ts": timing.avg_ts,
        "stddev_ts": timing.stddev_ts,
        "samples_ns": timing.samples_ns,
        "samples_ts": timing.samples_ts,
        "model": "model",
        "label": "tg32 @ d4096",
        "repetitions": 3,
        "median_ts": timing.median_ts,
        "fill": "real",
        "n_ctx_train": 131072,
        "kv_bytes": 128 * MIB,
        "state_bytes": 0,
        "rss_bytes": 900 * MIB,
        "bytes_per_token": 800 * MIB,
        "read_bandwidth": 30e9,
        "roofline_fraction": 0.28,
        "model_sha256": "ab" * 32,
        "machine_id": "0123456789ab",
        "engine_key": "0123456789abcdef",
    }
    return Row(**(fields | changes))


SMALL_BUFFER = 1 << 24


@pytest.fixture(autouse=True)
def _small_bandwidth_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that the caches may hold: these tests do not measure speed."""
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", SMALL_BUFFER)


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return example_row


@pytest.fixture
def rows() -> list[Row]:
    """Two models at three depths, the second one filled synthetically at the last."""
    made = []
    for depth in (0, 1024, 262144):
        label = f"tg32 @ d{depth}" if depth else "tg32"
        common = {"n_depth": depth, "label": label}
        made.append(
            example_row(model="1b", model_sha256="1" * 64, kv_bytes=64 * MIB, state_bytes=MIB, **common)
        )
        fill = "synthetic" if depth > 4096 else "real"
        made.append(
            example_row(
                model="llama-1b", model_sha256="2" * 64, kv_bytes=(depth + 256) * 32768, fill=fill, **common
            )
        )
    return made
