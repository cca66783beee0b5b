from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from text_checkpoints import LLAMA3, QWEN2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.vocab.tokens import TokenType
from sb_edge.convert.vocab.vocabulary import load_vocabulary
from sb_edge.gguf.reader import read_header
from sb_edge.util.errors import TokenizerError

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Spiking brains spike 1234 times; it's they're we've.",
] * 20
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def split(regex: str):
    from tokenizers import Regex

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "qwen2": split(QWEN2),
    "llama-bpe": split(LLAMA3),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def train(pre: str = "qwen2") -> Tokenizer:
    """A tiny byte-level BPE with ChatML's special tokens, numbered after the learned ones as in Qwen2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.ignore_merges = pre == "llama-bpe"
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


def make_config(vocab_size: int = 320, **changes) -> SpikingBrainConfig:
    base = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 2048,
        "sliding_window": 16,
        "rope_theta": 1e4,
    }
    return SpikingBrainConfig.model_validate(base | changes)


def tokenizer_config(tokenizer: Tokenizer, **changes) -> dict:
    added = tokenizer.get_added_tokens_decoder()
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(number): {"content": token.content, "special": token.special}
            for number, token in added.items()
        },
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": {"content": "<|endoftext|>"},
        "add_bos_token": False,
        "chat_template": CHATML,
    } | changes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train()


@pytest.fixture
def json_folder(tmp_path, tokenizer) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    folder = tmp_path / "json"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer)))
    return folder


@pytest.fixture
def text_folder(tmp_path, tokenizer) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json, as the public release ships them."""
    folder = tmp_path / "text"
    folder.mkdir()
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(tokenizer)))
    return folder


def edit(path: Path, change) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def refusal(folder: Path, config: SpikingBrainConfig | None = None) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_vocabulary(folder, config or make_config())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_tokenizer(tmp_path):
    assert load_vocabulary(tmp_path, make_config()) is None


def test_both_forms_say_the_same(json_folder, text_folder, tokenizer):
    edit(json_folder / "tokenizer.json", lambda document: document.update(normalizer={"type": "NFC"}))
    first, second = (load_vocabulary(folder, make_config()) for folder in (json_folder, text_folder))
    assert first == second
    assert first.model == "gpt2" and first.pre == "qwen2"
    vocab = tokenizer.get_vocab()
    for text, number in vocab.items():
        assert first.table.texts[number] == text
    assert first.table.types[: len(vocab) - 4] == [TokenType.NORMAL] * (len(vocab) - 4)
    assert first.table.types[len(vocab) - 4 : len(vocab)] == [TokenType.CONTROL] * 3 + [
        TokenType.USER_DEFINED
    ]
    assert first.table.texts[len(vocab) :] == [f"[PAD{n}]" for n in range(len(vocab), 320)]
    assert set(first.table.types[len(vocab) :]) == {TokenType.UNUSED}


@pytest.mark.parametrize("fixture", ["json_folder", "text_folder"])
def test_every_file_is_read_once(fixture, request, monkeypatch):
    folder = request.getfixturevalue(fixture)
    read, original = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: (read.append(Path(path).name), original(path, *rest))[1]
    )
    load_vocabulary(folder, make_config())
    files = ["tokenizer.json"] if fixture == "json_folder" else ["vocab.json", "merges.txt"]
    assert sorted(read) == sorted(["tokenizer_config.json", *files])


def test_end_of_turn_of_chatml(json_folder, tokenizer):
    vocabulary = load_vocabulary(json_folder, make_config())
    number = tokenizer.token_to_id
    assert vocabulary.special == {
        "eos": number("<|endoftext|>"),
        "pad": number("<|endoftext|>"),
        "eot": number("<|im_end|>"),
    }
    assert not vocabulary.add_bos and vocabulary.chat_template == CHATML


def test_no_end_of_turn_without_a_template_or_if_it_is_eos(json_folder):
    edit(json_folder / "tokenizer_config.json", lambda document: document.update(eos_token="<|im_end|>"))
    assert "eot" not in load_vocabulary(json_folder, make_config()).special
    edit(json_folder / "tokenizer_config.json", lambda document: document.update(chat_template=None))
    assert "eot" not in load_vocabulary(json_folder, make_config()).special


def test_special_tokens_fall_back_to_the_model(json_folder):
    edit(json_folder / "tokenizer_config.json", lambda document: document.update(eos_token=None))
    config = make_config(bos_token_id=5, eos_token_id=[7, 8])
    special = load_vocabulary(json_folder, config).special
    assert special["eos"] == 7 and "bos" not in special  # bos is null in tokenizer_config.json
    edit(json_folder / "tokenizer_config.json", lambda document: document.pop("bos_token"))
    assert load_vocabulary(json_folder, config).special["bos"] == 5


def test_templates_in_a_file_and_with_names(json_folder):
    edit(json_folder / "tokenizer_config.json", lambda document: document.pop("chat_template"))
    (json_folder / "chat_template.jinja").write_text("<|im_end|> {{ x }}")
    vocabulary = load_vocabulary(json_folder, make_config())
    assert vocabulary.chat_template == "<|im_end|> {{ x }}" and "eot" in vocabulary.special
    (json_folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": CHATML}, {"name": "tool", "template": "x"}]
    edit(json_folder / "tokenizer_config.json", lambda document: document.update(chat_template=named))
    assert load_vocabulary(json_folder, make_config()).chat_template == named


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_known_pre_tokenizers(tmp_path, pre):
    train(pre).save(str(tmp_path / "tokenizer.json"))
    assert load_vocabulary(tmp_path, make_config()).pre == pre


def test_gguf_holds_it(golden_copy, json_folder, tmp_path, tokenizer):
    """Converted with the golden weights, enlarged to the tokenizer's vocabulary."""
    import numpy as np

    tensors = golden_copy.tensors()
    for name in ("model.embeddings.weight", "lm_head.weight"):
        tensors[name] = np.resize(tensors[name], (320, 128))
    golden_copy.save(tensors)
    golden_copy.edit_config(vocab_size=320)
    for file in json_folder.iterdir():
        shutil.copyfile(file, golden_copy.folder / file.name)
    report = convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf")
    keys = read_header(tmp_path / "out.gguf").metadata
    assert report.vocabulary == keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 320
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert keys["tokenizer.ggml.merges"] == [
        merge if isinstance(merge, str) else " ".join(merge) for merge in merges
    ]
    assert keys["tokenizer.ggml.eot_token_id"] == tokenizer.token_to_id("<|im_end|>")
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.token_to_id("<|endoftext|>")
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"] == CHATML


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda d: d.update(pre_tokenizer={"type": "Whitespace"}),
            "pre_tokenizer: is not known to the engine",
        ),
        (lambda d: d.update(pre_tokenizer=None), "pre_tokenizer: is not known"),
        (
            lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": 3}),
            "pretokenizers: is damaged",
        ),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="."),
            "pre_tokenizer: is not known",
        ),
        (lambda d: d.update(normalizer={"type": "StripAccents"}), "normalizer: is not supported"),
        (lambda d: d.update(normalizer={"type": "Replace"}), "normalizer: is not supported"),
        (lambda d: d.update(normalizer={"type": "Sequence", "normalizers": 3}), "normalizer: is not supp"),
        (lambda d: d.update(normalizer="NFC"), "normalizer: is not supported"),
        (
            lambda d: d["model"].update(type="Unigram"),
            "model.type: is not a byte-level BPE (found 'Unigram')",
        ),
        (lambda d: d["model"].update(byte_fallback=True), "BPE with byte fallback"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix: is not supported"),
        (lambda d: d.update(model=None), "has no model"),
        (lambda d: d["model"].update(vocab={}), "has no vocabulary"),
        (lambda d: d["model"]["vocab"].update(zzz=-1), "'zzz': has no valid number"),
        (lambda d: d["model"]["vocab"].update(zzz=3), "has the number of another token"),
        (lambda d: d["model"]["vocab"].update(zzz=5000), "beyond the model's vocabulary (found 5000"),
        (lambda d: d["model"].update(merges="x"), "has no merges"),
        (lambda d: d["model"]["merges"].insert(4, "onlyone"), "model.merges[4]: is not a merge"),
        (
            lambda d: d["model"]["merges"].insert(4, ["qq", "zz"]),
            "model.merges[4]: merges a token that is not",
        ),
        (lambda d: d.update(added_tokens=3), "added_tokens: is not a list"),
        (lambda d: d["added_tokens"].append({"id": 310}), "310: an added token is damaged"),
        (lambda d: d["added_tokens"].append("x"), "an added token is damaged"),
        (lambda d: d["added_tokens"].append({"id": 3, "content": "hi"}), "conflicts with another token"),
    ],
)
def test_damaged_tokenizer_json(json_folder, change, problem):
    edit(json_folder / "tokenizer.json", change)
    line = refusal(json_folder)
    assert "tokenizer.json" in line and problem in line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.update(eos_token="<nope>"), "eos_token: is not in the vocabulary (found '<nope>')"),
        (lambda d: d.update(chat_template=3), "chat_template: is not a template"),
        (lambda d: d.update(chat_template=[{"name": "x"}]), "chat_template: is not a template"),
        (lambda d: d.update(added_tokens_decoder=[]), "added_tokens_decoder: is not a JSON object"),
        (lambda d: d["added_tokens_decoder"].update(x={}), "added_tokens_decoder.x: is not a token number"),
        (lambda d: d["added_tokens_decoder"].update({"311": {}}), "311: an added token is damaged"),
        (
            lambda d: d["added_tokens_decoder"].update({"999": {"content": "x"}}),
            "beyond the model's vocabulary",
        ),
    ],
)
@pytest.mark.parametrize("form", ["json_folder", "text_folder"])
def test_damaged_tokenizer_config(request, form, change, problem):
    folder = request.getfixturevalue(form)
    edit(folder / "tokenizer_config.json", change)
    line = refusal(folder)
    assert "tokenizer_config.json" in line and problem in line


def test_unknown_tokenizer_class(text_folder):
    edit(
        text_folder / "tokenizer_config.json",
        lambda document: document.update(tokenizer_class="BloomTokenizerFast"),
    )
    assert "tokenizer_class: is not known to the engine (found 'BloomTokenizerFast'" in refusal(text_folder)


def test_bare_vocab_and_merges_are_qwen2(text_folder):
    (text_folder / "tokenizer_config.json").unlink()
    vocabulary = load_vocabulary(text_folder, make_config())
    assert vocabulary.pre == "qwen2" and vocabulary.special == {}


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_half_a_tokenizer(text_folder, name):
    (text_folder / name).unlink()
    assert f"{name}: not found" in refusal(text_folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("single", "is not a merge"),
        ("a b c", "is not a merge"),
        (" a", "is not a merge"),
        ("qq zz", "merges a token"),
    ],
)
def test_damaged_merges_name_the_line(text_folder, line, problem):
    path = text_folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[5] = line
    path.write_text("\n".join(lines), encoding="utf-8")
    message = refusal(text_folder)
    assert "merges.txt: line 6: " in message and problem in message


def test_merges_that_are_empty_or_binary(text_folder):
    (text_folder / "merges.txt").write_text("#version: 0.2\n")
    assert "has no merges" in refusal(text_folder)
    (text_folder / "merges.txt").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refusal(text_folder)


def test_merges_with_windows_line_ends(text_folder):
    expected = load_vocabulary(text_folder, make_config())
    path = text_folder / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_vocabulary(text_folder, make_config()) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{\n\n"a": 1,}', r"vocab\.json: line 3: is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"\xff", "is not UTF-8 text"),
        (b'{"a":' * 100_000, "is not valid JSON"),
    ],
)
def test_damaged_vocab_json_names_the_line(text_folder, content, problem):
    (text_folder / "vocab.json").write_bytes(content)
    assert re.search(problem, refusal(text_folder))


def test_special_number_beyond_the_vocabulary(text_folder):
    edit(text_folder / "tokenizer_config.json", lambda document: document.update(eos_token=None))
    assert "eos_token_id: is beyond the vocabulary" in refusal(text_folder, make_config(eos_token_id=320))


def test_template_processing_asks_for_bos(json_folder):
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [300]}},
    }
    edit(json_folder / "tokenizer.json", lambda document: document.update(post_processor=processor))
    edit(json_folder / "tokenizer_config.json", lambda document: document.pop("add_bos_token"))
    vocabulary = load_vocabulary(json_folder, make_config())
    assert vocabulary.add_bos and vocabulary.special["bos"] == 300


def test_nfc_is_accepted(tmp_path, tokenizer):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.normalizer = normalizers.NFC()
    copy.save(str(tmp_path / "tokenizer.json"))
    assert load_vocabulary(tmp_path, make_config()).pre == "qwen2"


def train_sentencepiece(folder: Path, kind: str) -> Path:
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320 if kind == "bpe" else 40,
        model_type=kind,
        byte_fallback=kind == "bpe",
        user_defined_symbols=[],
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def spm_model(tmp_path_factory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("spm"), "bpe")


def test_sentencepiece(tmp_path, spm_model):
    shutil.copyfile(spm_model, tmp_path / "tokenizer.model")
    config = {
        "eos_token": "</s>",
        "added_tokens_decoder": {"320": {"content": "<|im_end|>", "special": True}},
        "chat_template": CHATML,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = load_vocabulary(tmp_path, make_config(vocab_size=330))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm_model))
    assert vocabulary.model == "llama" and vocabulary.pre == "default" and vocabulary.merges == []
    assert vocabulary.table.texts[:320] == [processor.IdToPiece(n) for n in range(320)]
    assert vocabulary.scores[:320] == [processor.GetScore(n) for n in range(320)]
    assert vocabulary.table.types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert vocabulary.table.types[3] == TokenType.BYTE and vocabulary.table.texts[3] == "<0x00>"
    assert vocabulary.table.types[320:] == [TokenType.CONTROL] + [TokenType.UNUSED] * 9
    assert vocabulary.special == {"bos": 1, "eos": 2, "unk": 0, "eot": 320}
    assert vocabulary.add_bos and vocabulary.add_space_prefix


def test_sentencepiece_damaged(tmp_path, spm_model):
    whole = spm_model.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], bytes(100)):
        (tmp_path / "tokenizer.model").write_bytes(content)
        line = refusal(tmp_path)
        assert "tokenizer.model" in line


def test_sentencepiece_larger_than_the_model(tmp_path, spm_model):
    shutil.copyfile(spm_model, tmp_path / "tokenizer.model")
    assert "beyond the model's vocabulary" in refusal(tmp_path, make_config(vocab_size=300))


def test_sentencepiece_unigram_is_refused(tmp_path):
    train_sentencepiece(tmp_path, "unigram")
    assert "has an unsupported type (found unigram, expected bpe)" in refusal(tmp_path)
