"""The Python API, on the real engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sb_edge
from sb_edge import Chat, Sampling, generate, load, quantize, stream_generate
from sb_edge.gguf.reader import read_header
from sb_edge.util.errors import ConfigError, GgufError, InferenceError

ROOT = Path(__file__).parents[1]
GREEDY = Sampling(temperature=0)


@pytest.mark.engine
def test_generate_and_stream_give_the_same_text() -> None:
    with load("default", ctx_size=512) as model:
        text = generate(model, "The lighthouse stood", max_tokens=12, sampling=GREEDY)
        stream = stream_generate(model, "The lighthouse stood", max_tokens=12, sampling=GREEDY)
        assert next(iter(stream)) + "".join(stream) == text != ""
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
def test_texts_in_turn_do_not_mix() -> None:
    with load("default", ctx_size=512) as model:
        chat = Chat(model, sampling=GREEDY, max_tokens=8)
        chat.say("What is the capital of France?")
        first = stream_generate(model, "The lighthouse stood", max_tokens=6, sampling=GREEDY)
        pieces = iter(first)
        next(pieces)
        generate(model, "A dog", max_tokens=2, sampling=GREEDY)
        with pytest.raises(InferenceError, match="another text"):
            next(pieces)
        answer = chat.say("And of Italy?")
        other = Chat(model, sampling=GREEDY, max_tokens=8)
        other.say("What is the capital of France?")
        assert other.say("And of Italy?") == answer


@pytest.mark.engine
def test_a_turn_that_does_not_fit_is_taken_back() -> None:
    with load("default", ctx_size=128) as model:
        chat = Chat(model, sampling=GREEDY, max_tokens=4)
        chat.say("Hello")
        with pytest.raises(InferenceError, match="the context is full"):
            chat.say("sea " * 400)
        assert len(chat.messages) == 2 and chat.say("Hello")


@pytest.mark.engine
def test_options_that_cannot_be() -> None:
    with pytest.raises(InferenceError, match="threads"):
        load("default", ctx_size=64, threads=100_000)
    model = load("default", ctx_size=64)
    text = generate(model, "The lighthouse", max_tokens=8, sampling=GREEDY)
    letters = "".join(sorted(set(text)))
    assert generate(model, "The lighthouse", max_tokens=8, sampling=GREEDY, stop=letters) == text
    for options in ({"max_tokens": 0}, {"stop": [""]}):
        with pytest.raises(InferenceError):
            generate(model, "The lighthouse", **options)
    session, chat = model.session, Chat(model)
    stream = stream_generate(model, "The lighthouse")
    model.close()
    for use in (
        lambda: generate(model, "The lighthouse"),
        lambda: chat.say("Hello"),
        lambda: list(stream),
        lambda: session.model.tokenize("The lighthouse"),
        session.seq_state,
        lambda: Chat(model),
    ):
        with pytest.raises(InferenceError, match="closed"):
            use()


def test_an_unknown_type_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="f17"):
        sb_edge.convert(data / "gla_swa", tmp_path / "m.gguf", outtype="f17")


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
