"""The Python API, on the real engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sb_edge
from sb_edge import Chat, generate, load, quantize, stream_generate
from sb_edge.gguf.reader import read_header
from sb_edge.runtime.sampling import Sampling
from sb_edge.util.errors import GgufError

ROOT = Path(__file__).parents[1]
GREEDY = Sampling(temperature=0)


@pytest.mark.engine
def test_generate_and_stream_give_the_same_text() -> None:
    with load("default", ctx_size=512) as model:
        text = generate(model, "The lighthouse stood", max_tokens=12, sampling=GREEDY)
        stream = stream_generate(model, "The lighthouse stood", max_tokens=12, sampling=GREEDY)
        assert "".join(stream) == text != ""
        assert (stream.stats.tokens, stream.stats.stopped) == (12, "length")
        word = text.split()[2]
        cut = generate(model, "The lighthouse stood", max_tokens=12, sampling=GREEDY, stop=[word])
        assert text.startswith(cut) and word not in cut


@pytest.mark.engine
def test_a_chat_remembers() -> None:
    with load("default", ctx_size=1024) as model:
        chat = Chat(model, "Answer briefly.", sampling=GREEDY, max_tokens=16)
        assert "Paris" in chat.say("What is the capital of France?")
        chat.say("And of Italy?")
        assert [turn["role"] for turn in chat.messages] == ["system", *["user", "assistant"] * 2]


@pytest.mark.engine
def test_convert_and_quantize(data: Path, tmp_path: Path) -> None:
    (file,) = sb_edge.convert(data / "gla_swa", tmp_path / "m.gguf", outtype="f32")
    assert file == tmp_path / "m.gguf"
    assert quantize(file, tmp_path / "q.gguf", "Q8_0") == tmp_path / "q.gguf"
    assert {tensor.type for tensor in read_header(tmp_path / "q.gguf").tensors} >= {"Q8_0"}


@pytest.mark.parametrize(
    "program",
    [
        "from sb_edge import convert; import sb_edge.convert.convert; from sb_edge import convert as again",
        "import sb_edge.convert.convert; from sb_edge import convert; again = convert",
    ],
)
def test_convert_is_a_function_whatever_is_imported_first(program: str) -> None:
    check = "; assert callable(convert) and callable(again); assert convert.convert.convert_checkpoint"
    subprocess.run([sys.executable, "-c", program + check], check=True)


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, sb_edge; sys.exit(bool({'numpy', 'click', 'jinja2'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sb_edge.nothing
    with pytest.raises(GgufError, match="default, default-base, 1b"):
        load("no-such-model")
