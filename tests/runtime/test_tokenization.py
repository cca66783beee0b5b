"""Tokens as the tokenizer's own library cuts them: normalization, spaces, unknown characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import sentencepiece
from text_checkpoints import bpe, sentencepiece_model, tiny_config, vocabulary_gguf, write_files
from tokenizers import Tokenizer, normalizers

from sb_edge.arch.text_normalizer import NORMALIZER_KEY, UNICODE_STEPS
from sb_edge.convert.vocab.vocabulary import load_vocabulary
from sb_edge.gguf.reader import read_header
from sb_edge.runtime.model import Model
from sb_edge.util.errors import GgufError, InferenceError, TokenizerError

pytestmark = pytest.mark.engine

ACCENTS = [
    "cafe\u0301",
    "caf\u00e9",
    "\ufb01ve \u2460 \u212b",
    "ΟΔΟΣ İX",
    "<|IM_START|>Cafe\u0301<|im_start|>É",
    "",
]
CONTROL = ["<|stop|>", "<|im_start|>", "<|IM_START|>"]
STOP = {"eos_token": "<|stop|>", "tokenizer_class": "PreTrainedTokenizerFast"}


def opened(folder: Path, size: int = 320) -> Model:
    return Model(vocabulary_gguf(folder, folder / "v.gguf", tiny_config(vocab_size=size)), vocab_only=True)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFC"},
        {"type": "NFD"},
        {"type": "NFKC"},
        {"type": "NFKD"},
        {"type": "Lowercase"},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
        {"type": "Sequence", "normalizers": []},
    ],
)
def test_normalization_is_that_of_the_tokenizers_library(
    tmp_path: Path, normalizer: dict[str, object] | None
) -> None:
    tokenizer = bpe(
        ["caf\u00e9", "five"], ["<|stop|>", "<|im_start|>", "<|IM_START|>"], normalizer=normalizer
    )
    write_files(tmp_path, tokenizer_json=tokenizer, tokenizer_config_json=STOP)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with opened(tmp_path) as model:
        for text in ACCENTS:
            assert model.tokenize(text) == library.encode(text).ids, text


def test_the_basic_plane_is_composed_as_in_the_tokenizers_library() -> None:
    """Beyond it, one letter of Unicode 13 differs: the library's tables are older than Python's."""
    characters = [chr(point) for point in range(0x10000) if not 0xD800 <= point < 0xE000]
    text = " ".join(characters) + " ".join(unicodedata.normalize("NFD", each) for each in characters)
    assert UNICODE_STEPS["NFC"](text) == normalizers.NFC().normalize_str(text)


def edited(path: Path, **strings: str | None) -> Path:
    """A copy of a vocabulary GGUF with some string keys replaced, or left out (None)."""
    reader, copy = gguf.GGUFReader(path), path.with_name("edited.gguf")
    writer = gguf.GGUFWriter(copy, "llama")
    for name, field in reader.fields.items():
        key = next((new for new in strings if new.replace("__", ".") == name), None)
        if name.startswith("GGUF.") or name == "general.architecture" or (key and strings[key] is None):
            continue
        value = strings[key] if key else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return copy


def test_normalization_of_ggufs_of_other_converters(tmp_path: Path) -> None:
    """Qwen2's files have no key for their NFC."""
    key = NORMALIZER_KEY.replace(".", "__")
    write_files(tmp_path, tokenizer_json=bpe(["caf\u00e9"], ["<|stop|>"]), tokenizer_config_json=STOP)
    path = vocabulary_gguf(tmp_path, tmp_path / "v.gguf")
    assert read_header(path).metadata[NORMALIZER_KEY] == "none"
    for changes, is_composed in (
        ({}, False),
        ({key: None}, True),
        ({key: None, "tokenizer__ggml__pre": "smollm"}, False),
    ):
        with Model(edited(path, **changes), vocab_only=True) as model:
            assert (model.tokenize("cafe\u0301") == model.tokenize("caf\u00e9")) is is_composed
    with (
        Model(edited(path, **{key: "NFC+Reverse"}), vocab_only=True) as model,
        pytest.raises(GgufError, match=r"unknown normalization \(found 'NFC\+Reverse'\)"),
    ):
        model.tokenize("x")


LINES = ["hello world, the bird sings in the tree and says hello to the world"] * 40 + [
    "one two three four five six", "user assistant says", "hel lo wor ld", "Grüße café fi 1234"
] * 20  # fmt: skip


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"])
@pytest.mark.parametrize("whitespace", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece(tmp_path: Path, rule: str, whitespace: bool, prefix: bool) -> None:
    sentencepiece_model(
        tmp_path,
        LINES,
        normalization_rule_name=rule,
        remove_extra_whitespaces=whitespace,
        add_dummy_prefix=prefix,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    with opened(tmp_path, 330) as model:
        for text in ("hello world", "  two  spaces ", "a\tb\n\nc", "Cafe\u0301 \ufb01ve ΟΔΟΣ", "  ", ""):
            assert model.tokenize(text, add_special=False) == processor.EncodeAsIds(text), text


def test_another_normalization_of_sentencepiece_is_refused(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("41\t61\n")
    sentencepiece_model(tmp_path, LINES, normalization_rule_tsv=str(rules))
    with pytest.raises(TokenizerError, match="normalizer_spec: has a normalization of its own"):
        load_vocabulary(tmp_path, tiny_config(vocab_size=330))


@pytest.fixture
def spm(tmp_path: Path) -> Iterator[Model]:
    sentencepiece_model(tmp_path, LINES, remove_extra_whitespaces=False)
    turn = {"id": 325, "content": "<|turn|>", "special": True}
    write_files(tmp_path, tokenizer_json={"added_tokens": [turn]})
    with opened(tmp_path, 330) as model:
        yield model


def test_what_follows_a_text_begins_with_no_space_of_its_own(spm: Model) -> None:
    for text in ("hello world", "hello  world", "one\ntwo", "one<|turn|>two"):
        for cut in range(1, len(text)):
            if text[:cut].count("<") > text[:cut].count(">"):
                continue
            first = spm.tokenize(text[:cut])
            second = spm.tokenize(text[cut:], after=first[-1])
            assert spm.detokenize([*first, *second]) == b" " + text.replace("<|turn|>", " ").encode()
    # where the first text ends between two words, the tokens are those of the whole
    first = spm.tokenize("hello")
    assert first + spm.tokenize(" world", after=first[-1]) == spm.tokenize("hello world")


def test_unknown_characters_of_a_vocabulary_without_bytes(tmp_path: Path) -> None:
    sentencepiece_model(tmp_path, LINES, size=60, byte_fallback=False)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    with opened(tmp_path, 70) as model:
        for text in ("hello 7 \n\t *", "***", "h*llo ** world", "*", "日本 hello"):
            assert model.tokenize(text, add_special=False) == processor.EncodeAsIds(text), text


def test_half_a_surrogate_pair_is_refused(spm: Model) -> None:
    for text in ("\ud800", "caf\udce9"):
        with pytest.raises(InferenceError, match="the text is not valid UTF-8"):
            spm.tokenize(text)
