"""The forecast against what a process takes, and the refusal where the system grants less."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sb_edge.convert.lfm2_shape import Lfm2Shape, write_lfm2_gguf
from sb_edge.convert.llama_shape import LlamaShape, write_llama_gguf
from sb_edge.convert.rwkv7_shape import Rwkv7Shape, write_rwkv7_gguf

pytestmark = pytest.mark.engine

MEASURE = """
import json, sys
import psutil
from sb_edge.memory import forecast
from sb_edge.models import resolve_gguf
from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Model, Session

path, n_ctx, kind = resolve_gguf(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
library()
before = psutil.Process().memory_info().rss
settings = {"n_ctx": n_ctx, "n_threads": 1, "n_outputs": 1, "type_k": kind, "type_v": kind}
with Model(path) as model, Session(model, **settings) as session:
    session.evaluate([1 + i % 500 for i in range(min(n_ctx - 1, 1000))])
    session.evaluate([1])
    grown = psutil.Process().memory_info().rss - before
    need = forecast(model.header, n_ctx, type_k=kind, type_v=kind)
    kv, state = session.kv_bytes, session.state_bytes
print(json.dumps({"grown": grown, "total": need.total, "kv": [kv, need.kv], "state": [state, need.state]}))
"""


def measure(model: Path | str, n_ctx: int, kind: str) -> dict:
    arguments = [sys.executable, "-c", MEASURE, str(model), str(n_ctx), kind]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


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
def test_forecast_within_a_tenth_of_the_measured(models, name, n_ctx, kind):
    found = measure(models.get(name, name), n_ctx, kind)
    assert found["total"] == pytest.approx(found["grown"], rel=0.10)
    for part in ("kv", "state"):
        measured, forecast = found[part]
        assert measured == pytest.approx(forecast, rel=0.01, abs=20000)


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
        (["generate", "default-base", "-p", "Hi", "-c", "131072"], "--context "),
        (["chat", "default-base", "-c", "131072"], "--context "),
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
