from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sb_edge.bench import bandwidth
from sb_edge.bench.machine import Machine
from sb_edge.bench.row import Row
from sb_edge.bench.stats import summarize

MIB = 2**20
TINY_LLAMA = {
    "n_layer": 2,
    "hidden": 128,
    "n_head": 4,
    "n_head_kv": 2,
    "ffn": 256,
    "vocab": 256,
    "context": 4096,
}


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
    """A buffer that the caches may hold: speeds are not what is tested here."""
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


@pytest.fixture
def machine() -> Machine:
    return Machine(
        "a processor", 2, 4, 8 << 30, None, "Linux", "0123", "0.3.36", "0c1e570", ("0001-a.patch",)
    )


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset, random weights, float32."""
    from sb_edge.convert.convert import convert_checkpoint
    from sb_edge.convert.initialise import init_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    init_checkpoint("tiny", folder / "checkpoint")
    convert_checkpoint(folder / "checkpoint", folder / "tiny.gguf", outtype="f32")
    return folder / "tiny.gguf"


@pytest.fixture(scope="session")
def tiny_lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LFM2 of three layers, the middle one attention, random weights, float16."""
    from sb_edge.convert.lfm2_shape import Lfm2Shape, write_lfm2_gguf

    path = tmp_path_factory.mktemp("lfm2") / "lfm2.gguf"
    shape = Lfm2Shape(n_layer=3, attention_layers=(1,), hidden=256, n_head=4, n_head_kv=2, ffn=512, vocab=512)
    write_lfm2_gguf(path, "f16", shape=shape)
    return path


@pytest.fixture(scope="session")
def tiny_rwkv7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RWKV-7 of two layers, random weights, float16."""
    from sb_edge.convert.rwkv7_shape import Rwkv7Shape, write_rwkv7_gguf

    path = tmp_path_factory.mktemp("rwkv7") / "rwkv7.gguf"
    ranks = {"decay_rank": 32, "learning_rank": 32, "value_rank": 32, "gate_rank": 64}
    write_rwkv7_gguf(path, "f16", shape=Rwkv7Shape(n_layer=2, hidden=256, ffn=512, vocab=512, **ranks))
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, random weights, float16."""
    from sb_edge.convert.llama_shape import LlamaShape, write_llama_gguf

    path = tmp_path_factory.mktemp("llama") / "llama.gguf"
    write_llama_gguf(path, "f16", shape=LlamaShape(**TINY_LLAMA))
    return path
