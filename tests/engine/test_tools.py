"""llama.cpp's own programs work on SpikingBrain files."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sb_edge.engine import find_engine
from sb_edge.evaluate.perplexity import held_out_text
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantize

pytestmark = pytest.mark.engine


def run(tool: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [find_engine().tool(tool), *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(held_out_text(), encoding="utf-8")
    return path


def test_llama_bench() -> None:
    model = resolve_gguf("default")
    printed = run("llama-bench", "-m", model, "-p", "16", "-n", "4", "-r", "1", "-d", "32", "-o", "json")
    rows = json.loads(printed[printed.index("[") : printed.rindex("]") + 1])
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == [(16, 0, 32), (0, 4, 32)]
    assert all(row["avg_ts"] > 0 for row in rows)
    assert rows[0]["model_type"].startswith("spikingbrain")


def test_llama_perplexity(text: Path) -> None:
    printed = run("llama-perplexity", "-m", resolve_gguf("default"), "-f", text, "-c", "256", "--no-warmup")
    found = re.search(r"Final estimate: PPL = ([\d.]+)", printed)
    assert found
    assert 10 < float(found[1]) < 200


def test_llama_imatrix_serves_quantization(text: Path, tmp_path: Path) -> None:
    model = resolve_gguf("default")
    run("llama-imatrix", "-m", model, "-f", text, "-c", "256", "-o", tmp_path / "imatrix.gguf", "--no-ppl")
    quantize(
        model, tmp_path / "small.gguf", "IQ3_S", imatrix=tmp_path / "imatrix.gguf", allow_requantize=True
    )
    assert (tmp_path / "small.gguf").stat().st_size < model.stat().st_size


@pytest.fixture
def server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["-m", resolve_gguf("default"), "--host", "127.0.0.1", "--port", str(port), "-c", "1024"]
    with subprocess.Popen(
        [find_engine().tool("llama-server"), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            base = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    if urllib.request.urlopen(base + "/health", timeout=2).status == 200:
                        break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    assert process.poll() is None, "llama-server ended"
                    time.sleep(0.25)
            yield base
        finally:
            process.terminate()


def ask(base: str, route: str, document: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        base + route, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        result: dict[str, Any] = json.loads(answer.read())
    return result


def test_llama_server_answers_and_reuses_its_cache_rightly(server: str) -> None:
    message = [{"role": "user", "content": "What is the capital of France?"}]
    document = {"messages": message, "temperature": 0, "max_tokens": 16}
    first = ask(server, "/v1/chat/completions", document)["choices"][0]["message"]["content"]
    assert "Paris" in first
    # another conversation in between, then the same again: a recurrent state that was reused where it must
    # not be would show
    other = {**document, "messages": [{"role": "user", "content": "Count from one to five."}]}
    ask(server, "/v1/chat/completions", other)
    assert ask(server, "/v1/chat/completions", document)["choices"][0]["message"]["content"] == first
