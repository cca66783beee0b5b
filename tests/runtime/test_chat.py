from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.conversation import ChatTemplate, Conversation
from sb_edge.runtime.generation import Generation, Stopping
from sb_edge.runtime.sampling import GREEDY, Sampling
from sb_edge.runtime.session import Model, Session
from sb_edge.util.errors import InferenceError

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(resolve_gguf("default")) as loaded:
        yield loaded


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model, n_ctx=1024) as opened:
        yield opened


def answer(chat: Conversation, text: str) -> tuple[Generation, str]:
    generation, pieces = chat.say(text)
    return generation, "".join(pieces)


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """KL(softmax expected || softmax found), nats."""
    x, y = (
        logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()) for logits in (expected, found)
    )
    return float((np.exp(x) * (x - y)).sum())


def test_only_what_is_new_is_evaluated(session: Session) -> None:
    chat = Conversation(session, GREEDY, stopping=Stopping(12))
    first, _ = answer(chat, "My name is Ada. Greet me.")
    second, _ = answer(chat, "And now say goodbye.")
    assert len(second.prompt) < len(first.prompt)
    # the state is the one that reading the whole conversation at once gives
    conversation = [*chat.messages, {"role": "user", "content": "What is my name?"}]
    whole = session.model.tokenize(ChatTemplate(session.model).render(conversation, answer_next=True))
    third, pieces = chat.say("What is my name?")
    assert session.position() + len(third.prompt) == len(whole)
    found = session.evaluate(third.prompt)
    pieces.close()
    with Session(session.model, n_ctx=1024) as fresh:
        expected = fresh.evaluate(whole)
        fresh.clear()
        forgetful = fresh.evaluate(third.prompt)
    assert divergence(expected, found) < 0.02 < 0.2 < divergence(expected, forgetful)


def test_greedy_answers_repeat_themselves_and_seeds_too(session: Session) -> None:
    for sampling in (GREEDY, Sampling(seed=7)):
        texts = []
        for _ in range(2):
            session.clear()
            prompt = session.model.tokenize("Once upon a time")
            generation = Generation(session, prompt, sampling, stopping=Stopping(12))
            texts.append("".join(generation))
        assert texts[0] == texts[1]
        assert texts[0].strip()


def test_the_answer_ends_where_the_context_does(model: Model) -> None:
    with Session(model, n_ctx=256) as session:
        tokens = model.tokenize("word " * 240)
        generation = Generation(session, tokens[:250], GREEDY, stopping=Stopping(100), ignore_end=True)
        list(generation.ids())
        assert generation.stats.stopped == "context"
        assert session.position() == 256


def test_text_round_trips_through_the_vocabulary(model: Model) -> None:
    for text in ("Hello, world!", "naïve café – 東京 🗼", "a\tb\n\n  c", ""):
        assert model.detokenize(model.tokenize(text)).decode() == text


def test_the_default_model_stops_at_the_end_of_a_turn(session: Session) -> None:
    generation, text = answer(
        Conversation(session, GREEDY, stopping=Stopping(200)), "What is the capital of France?"
    )
    assert generation.stats.stopped == "end"
    assert "Paris" in text
    assert "<|im_end|>" not in text


LONG = "The password is 71923. " + "Birds sing in the trees. " * 120


def interrupt_when_it_reads(session: Session) -> threading.Thread:
    """Press Ctrl-C, as a signal, once the session has seen a token."""

    def press() -> None:
        while session.position() == 0:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


def test_a_prompt_that_was_interrupted_is_left_out(model: Model, tmp_path: Path) -> None:
    with Session(model, n_ctx=1024, n_batch=32, n_outputs=1) as session:
        chat = Conversation(session, GREEDY, stopping=Stopping(4))
        _, pieces = chat.say(LONG)
        thread = interrupt_when_it_reads(session)
        with pytest.raises(KeyboardInterrupt):
            list(pieces)
        pieces.close()
        thread.join()
        assert chat.messages == []
        chat.save(tmp_path / "state")
        generation, _ = answer(chat, "Name a colour.")
        assert [message["role"] for message in chat.messages] == ["user", "assistant"]
        whole = model.tokenize(ChatTemplate(model).render(chat.messages, answer_next=False))
        assert generation.prompt == whole[: len(generation.prompt)]
        assert session.position() == len(generation.prompt) + generation.evaluated
        chat.load(tmp_path / "state")
        assert answer(chat, "Name a colour.")[0].tokens == generation.tokens


def test_a_turn_that_does_not_fit_is_left_out(model: Model) -> None:
    with Session(model, n_ctx=512, n_outputs=1) as session:
        chat = Conversation(session, GREEDY, stopping=Stopping(4))
        answer(chat, "Name a colour.")
        before = [dict(message) for message in chat.messages], session.position()
        with pytest.raises(InferenceError, match="the context is full"):
            answer(chat, LONG)
        assert (chat.messages, session.position()) == before
        generation, _ = answer(chat, "Name another.")
        assert len(generation.prompt) < 64  # earlier turns are not read again


def test_an_interrupted_answer_is_read_once(model: Model) -> None:
    with Session(model, n_ctx=1024, n_outputs=1) as session:
        chat = Conversation(session, GREEDY, stopping=Stopping(400))
        generation, pieces = chat.say("Tell a long story about a lighthouse.")
        shown = [next(pieces) for _ in range(3)]
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            shown.extend(pieces)
        pieces.close()
        assert session.position() == len(generation.prompt) + len(generation.tokens)
        assert chat.messages[-1]["content"].startswith("".join(shown))


def test_penalties_see_the_prompt_and_earlier_turns(model: Model, session: Session) -> None:
    prompt = model.tokenize("The capital of France is Paris. Again: the capital of France is")
    paris = model.tokenize(" Paris", add_special=False)
    for penalty, expected in ((1.0, True), (5.0, False)):
        session.clear()
        sampling = Sampling(temperature=0, repeat_penalty=penalty)
        generation = Generation(session, prompt, sampling, stopping=Stopping(1))
        assert (list(generation.ids()) == paris) is expected
    session.clear()
    session.evaluate(prompt[:-1])
    sampling = Sampling(temperature=0, repeat_penalty=5.0)
    later = Generation(session, prompt[-1:], sampling, history=prompt[:-1], stopping=Stopping(1))
    assert list(later.ids()) != paris


def test_a_turn_sees_the_tokens_of_earlier_turns(session: Session) -> None:
    chat = Conversation(session, Sampling(temperature=0, repeat_penalty=1.5), stopping=Stopping(8))
    answer(chat, "Say hello.")
    read = list(chat._tokens)
    second, pieces = chat.say("Say hello again.")
    pieces.close()
    assert list(second.history) == read and len(read) == session.position()


def test_a_model_without_vocabulary_is_refused(golden_gguf: Path) -> None:
    with Model(golden_gguf) as model, pytest.raises(InferenceError, match="no vocabulary"):
        ChatTemplate(model)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "chat template"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{% for i in range(1000000000) %}{% endfor %}", "chat template"),
        ("{{ 1 / 0 }}", "chat template"),
    ],
)
def test_hostile_templates_are_stopped(model: Model, template: str, message: str) -> None:
    class Other(Model):
        def __init__(self) -> None:
            self.__dict__.update(model.__dict__)

        @property
        def chat_template(self) -> str:
            return template

    with pytest.raises(InferenceError, match=message):
        ChatTemplate(Other()).render([{"role": "user", "content": "x"}], answer_next=True)
