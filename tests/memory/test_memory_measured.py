"""The forecast against what a process takes, and the refusal where the system grants less."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sb_edge.bench.baselines.lfm2 import Lfm2Shape, write_lfm2_gguf
from sb_edge.bench.baselines.llama import LlamaShape, write_llama_gguf
from sb_edge.bench.baselines.rwkv7 import Rwkv7Shape, write_rwkv7_gguf
from sb_edge.bench.selftest.memory_check import compare_memory
from sb_edge.bench.speed.plan import BenchModel
from sb_edge.cli.bench_options import resolve_model
from sb_edge.memory.forecast import EngineSettings

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Large enough that the engine's own megabytes do not decide; a second each."""
    from sb_edge.quant.quantize import quantize

    folder = tmp_path_factory.mktemp("models")
    plain = folder / "plain.gguf"
    sizes = {"n_layer": 4, "hidden": 1024, "ffn": 3072, "vocab": 4096}
    heads = {"n_head": 16, "n_head_kv": 8}
    made = {}
    for name in ("llama", "lfm2", "rwkv7"):
        if name == "llama":
            write_llama_gguf(plain, shape=LlamaShape(**sizes, **heads))
        elif name == "lfm2":
            write_lfm2_gguf(plain, shape=Lfm2Shape(**sizes, **heads, attention_layers=(1, 3)))
        else:
            write_rwkv7_gguf(plain, shape=Rwkv7Shape(**sizes))
        made[name] = folder / f"{name}.gguf"
        quantize(plain, made[name], "Q4_0")
    return made


@pytest.mark.parametrize(
    ("name", "n_ctx", "kind"),
    [
        ("default", 4096, "f16"),
        ("default", 65536, "q8_0"),
        ("llama", 1024, "f16"),
        ("llama", 1024, "q8_0"),
        ("lfm2", 1024, "f16"),
        ("rwkv7", 1024, "f16"),
    ],
)
def test_forecast_within_a_twentieth_of_the_measured(models, name, n_ctx, kind):
    model = BenchModel(name, models[name]) if name in models else resolve_model(name)
    (case,) = compare_memory([model], [n_ctx], [EngineSettings(kind, kind)], n_prompt=1000, n_threads=1)
    assert case.ratio == pytest.approx(1, rel=0.05)
    assert case.measured.kv == pytest.approx(case.expected.kv, rel=0.01, abs=20000)
    assert case.measured.state == pytest.approx(case.expected.state, rel=0.01, abs=20000)


def command(*arguments: str, limit: int) -> subprocess.CompletedProcess[str]:
    """Run sb-edge with an address space of `limit` bytes, as `ulimit -v` gives."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "sb_edge", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "offer"),
    [
        (["generate", "default-base", "-p", "Hi", "-c", "131072"], "--ctx-size "),
        (["chat", "default-base", "-c", "131072"], "--ctx-size "),
        (["bench", "decode", "default-base", "--depths", "0,131072"], "--depths up to "),
        (["bench", "spikes", "default", "-p", "100000000"], "--n-prompt "),
    ],
)
def test_commands_refuse_before_they_load(arguments, offer):
    done = command(*arguments, limit=2 << 30)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "will not fit in memory: it needs " in done.stderr
    assert " available); try " in done.stderr and offer in done.stderr
