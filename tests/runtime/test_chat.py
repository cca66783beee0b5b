from __future__ import annotations

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
