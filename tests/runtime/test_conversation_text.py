"""Turns of a conversation are read as the whole conversation would be."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_checkpoints import bpe, model_gguf, sentencepiece_model, write_files

from sb_edge.runtime.conversation import Conversation
from sb_edge.runtime.generation import Stopping
from sb_edge.runtime.model import Model
from sb_edge.runtime.plain_text import unmarked
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Session

pytestmark = pytest.mark.engine

LINES = ["hello world, the bird sings in the tree and says hello to the world"] * 60
TURNS = (
    "{% for m in messages %}{{ m.role }} says {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant says {% endif %}"
)
ENDED_TURNS = TURNS.replace("\n", "<|end|>")
"""With a control token that no user can type."""


@pytest.mark.parametrize("template", [TURNS, ENDED_TURNS])
@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_turns_are_read_as_one_text(tmp_path: Path, kind: str, template: str) -> None:
    folder = tmp_path / "model"
    end = {"id": 315, "content": "<|end|>", "special": True}
    if kind == "spm":
        sentencepiece_model(folder, LINES, size=310, remove_extra_whitespaces=False)
        files = {"tokenizer_json": {"added_tokens": [end]}}
    else:
        files = {"tokenizer_json": bpe(["the", " bird"]) | {"added_tokens": [end]}}
    write_files(folder, **files, tokenizer_config_json={"chat_template": template})
    letters = Sampling(temperature=5.0, seed=1, grammar="root ::= [a-z] [a-z ]*")
    with Model(model_gguf(folder)) as model, Session(model, n_ctx=1024, n_outputs=1) as session:
        chat = Conversation(session, letters, stopping=Stopping(6))
        for text in ("the bird <|end|>", "sings\n the tree", "and says hello"):
            generation, pieces = chat.say(text)
            assert "".join(pieces)
        assert session.position() == len(chat._tokens) > len(generation.prompt) + 6
        read = model.detokenize(chat._tokens).decode()
        # a control token shows nothing; a text after one begins with a space, as the first text does
        gap = " " if kind == "spm" else ""
        assert read == gap + unmarked(chat._seen.replace("<|end|>", gap))
