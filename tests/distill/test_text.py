"""The text of a run: accepted and refused documents, and the manifest."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tiny_bases import END_TOKEN, VOCAB, write_base

from sb_edge.distill.base import load_base
from sb_edge.distill.text.corpus import open_corpus, write_corpus
from sb_edge.distill.text.decontamination import held_out_hashes, holds
from sb_edge.distill.text.gather import TextRequest, documents
from sb_edge.distill.text.recall import recall_documents
from sb_edge.distill.text.samples import SEQUENCES, sampled_documents
from sb_edge.distill.text.sources import Document, given_documents
from sb_edge.distill.text.tokenizer import ANSWER, PLAIN, Tokenizer
from sb_edge.evaluate.perplexity import held_out_text
from sb_edge.evaluate.questions import read_questions
from sb_edge.evaluate.recall_cases import FILLER
from sb_edge.evaluate.recall_cases import tested_words as known_words
from sb_edge.util.errors import TrainingError

CPU = torch.device("cpu")
REQUEST = {"text": ["x"]}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer(load_base(tiny_base, CPU).reader)


@pytest.fixture
def chat_tokenizer(tmp_path: Path) -> Tokenizer:
    folder = write_base(tmp_path / "chat")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(load_base(folder, CPU).reader)


def test_tokens_and_manifest_hold_what_was_given(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("Grün.", encoding="utf-8")
    (folder / "deep" / "a.md").write_text("second", encoding="utf-8")
    (folder / "twice.txt").write_text("second", encoding="utf-8")
    (folder / "image.png").write_bytes(b"\x89PNG")
    write_corpus(given_documents([folder]), tokenizer, tmp_path / "text", REQUEST)
    corpus = open_corpus(tmp_path / "text", VOCAB, REQUEST)
    assert corpus.text["token"].tolist().count(END_TOKEN) == 2
    assert len(corpus.text) == len("Grün.".encode()) + 1 + len("second") + 1
    assert (corpus.text["counts"] == PLAIN).all()
    manifest = json.loads((tmp_path / "text" / "manifest.json").read_text())
    assert [entry["source"] for entry in manifest["documents"]] == ["texts/b.txt", "texts/deep/a.md"]
    assert manifest["documents"][1]["sha256"] == hashlib.sha256(b"second").hexdigest()
    assert manifest["tokens"] == len(corpus.text) == manifest["tokens_by_kind"]["given"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"  \n", "is empty"), (b"caf\xe9", "not UTF-8 text.*byte 3")],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        list(given_documents([tmp_path / "bad.txt"]))


def test_nothing_to_train_on_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not found"):
        list(given_documents([tmp_path / "nothing"]))
    with pytest.raises(TrainingError, match="holds no text"):
        list(given_documents([tmp_path]))
    with pytest.raises(TrainingError, match="no text to train on"):
        write_corpus([], tokenizer, tmp_path / "text", REQUEST)
    assert not (tmp_path / "text").exists()


def test_what_is_measured_on_is_never_trained_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    paragraph = next(part for part in held_out_text().split("\n\n") if len(part) > 100)
    rewrapped = "Something else first.\n\n" + "\n".join(paragraph.upper().split()) + "\n\nAnd after."
    assert holds(rewrapped, held_out_hashes())
    (tmp_path / "leak.txt").write_text(rewrapped)
    with pytest.raises(TrainingError, match=r"leak\.txt: holds text that models are measured on"):
        write_corpus(given_documents([tmp_path / "leak.txt"]), tokenizer, tmp_path / "text", REQUEST)
    longest = max((question.question for question in read_questions(None)), key=len)
    assert holds(f"Before.\n\n{longest.upper()}\n\nAfter.", held_out_hashes())
    assert not holds(
        "An own paragraph that stands in no text which anything is measured on.", held_out_hashes()
    )


def test_a_changed_text_is_refused(tokenizer: Tokenizer, prose: Path, tmp_path: Path) -> None:
    write_corpus(given_documents([prose]), tokenizer, tmp_path / "text", REQUEST)
    with pytest.raises(TrainingError, match="other text than asked for"):
        open_corpus(tmp_path / "text", VOCAB, {"text": ["y"]})
    with pytest.raises(TrainingError, match="outside the base's vocabulary"):
        open_corpus(tmp_path / "text", 100, REQUEST)
    tokens = np.load(tmp_path / "text" / "tokens.npy")
    tokens["token"][5] += 1
    np.save(tmp_path / "text" / "tokens.npy", tokens)
    with pytest.raises(TrainingError, match="not what its manifest says"):
        open_corpus(tmp_path / "text", VOCAB, REQUEST)
    (tmp_path / "text" / "tokens.npy").write_bytes(b"none")
    with pytest.raises(TrainingError, match="is not a distillation text"):
        open_corpus(tmp_path / "text", VOCAB, REQUEST)


def test_the_base_writes_its_own_text(tiny_base: Path, tokenizer: Tokenizer) -> None:
    base = load_base(tiny_base, CPU)
    first, again = (list(sampled_documents(base, tokenizer, 100, seed)) for seed in (1, 1))
    other = list(sampled_documents(base, tokenizer, 100, 2))
    assert first == again != other
    assert len(first) == SEQUENCES
    assert all(document.text.strip() for document in first)
    rounded = list(sampled_documents(base, tokenizer, 100, 1, bf16=True))
    assert len(rounded) == SEQUENCES
    assert base.model.head.dtype == torch.float32


def test_recall_asks_only_for_what_was_told(tiny_base: Path, tokenizer: Tokenizer) -> None:
    base = load_base(tiny_base, CPU)

    def made(seed: int) -> list[Document]:
        return list(documents(TextRequest(recall=20_000, seed=seed), base, tokenizer))

    first = made(1)
    assert first == made(1) != made(2)
    sizes = [len(tokenizer.document(document)) for document in first]
    assert sum(sizes[:-1]) < 20_000 <= sum(sizes)
    held_out = held_out_hashes()
    for document in first:
        assert not holds(document.text, held_out)
        assert document.answers
        for start, end in document.answers:
            # The last answers of a table end in its punctuation.
            words = re.findall(r"\w+", document.text[start:end])
            assert all(re.search(rf"\b{word}\b", document.text[:start]) for word in words)


def test_no_word_of_a_test_of_retrieval_is_trained_on(tokenizer: Tokenizer) -> None:
    """Values and people of `recall_cases`, and the sentences between telling and asking."""
    text = "\n".join(document.text for document in recall_documents(tokenizer, 100_000, 0)).lower()
    trained = set(re.findall(r"\w+", text))
    assert not trained & {word.lower() for word in known_words()}
    assert not any(sentence.lower() in text for sentence in FILLER)


def test_answers_alone_count(tokenizer: Tokenizer) -> None:
    """The prediction before each of an answer's tokens counts; of a text without answers, every one."""
    text = tokenizer.document(Document("abc def", "x", "MIT", "recall", ((4, 6),)))
    assert text["counts"].tolist() == [0, 0, 0, ANSWER, ANSWER, 0, 0, 0]
    assert tokenizer.document(Document("abc", "x", "MIT"))["counts"].tolist() == [PLAIN] * 4


def test_chats_are_for_bases_that_know_turns(tokenizer: Tokenizer, chat_tokenizer: Tokenizer) -> None:
    plain, chat = (
        [document.text for document in recall_documents(which, 20_000, 0)]
        for which in (tokenizer, chat_tokenizer)
    )
    assert not any("<|im_start|>" in text for text in plain)
    chats = [text for text in chat if text.startswith("<|im_start|>user\n")]
    assert chats
    assert len(chats) < len(chat)
    assert all(text.endswith("<|im_end|>\n") for text in chats)
