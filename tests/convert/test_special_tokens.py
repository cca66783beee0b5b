"""Which special tokens and chat templates a checkpoint names, and what the engine makes of its GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_checkpoints import SIZE, around, bpe, sentencepiece_model, tiny_config, vocabulary_gguf, write_files
from tokenizers import Tokenizer

from sb_edge.convert.vocab.vocabulary import load_vocabulary
from sb_edge.gguf.reader import read_header
from sb_edge.runtime.conversation import ChatTemplate
from sb_edge.runtime.model import Model
from sb_edge.util.errors import InferenceError, TokenizerError

pytestmark = pytest.mark.engine

PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
STOP = {"eos_token": "<|stop|>"}
COMMA = 11


def opened(folder: Path, **changes: object) -> Model:
    """The folder's vocabulary in the engine."""
    return Model(vocabulary_gguf(folder, folder / "v.gguf", tiny_config(**changes)), vocab_only=True)


def ends(model: Model) -> set[int]:
    return {token for token in range(model.n_vocab) if model.is_end_of_generation(token)}


def test_no_named_token_is_none(tmp_path: Path) -> None:
    write_files(tmp_path, tokenizer_json=bpe(["the"], ["<|x|>"]), tokenizer_config_json=PLAIN)
    with opened(tmp_path) as model:
        assert [model.special_token(kind) for kind in ("bos", "eos", "eot")] == [None, None, None]
        assert COMMA not in ends(model) and all(token > 300 for token in ends(model))
    # what the engine's own programs read: numbers that the model never writes
    keys = read_header(tmp_path / "v.gguf").metadata
    for kind in ("bos", "eos"):
        assert keys["tokenizer.ggml.token_type"][keys[f"tokenizer.ggml.{kind}_token_id"]] == 5


def test_a_full_vocabulary_needs_an_eos(tmp_path: Path) -> None:
    tokens = [f"<|{n}|>" for n in range(SIZE - 300)]
    write_files(tmp_path, tokenizer_json=bpe(["the"], tokens), tokenizer_config_json=PLAIN)
    with pytest.raises(TokenizerError, match="eos_token: names no token that ends a text"):
        load_vocabulary(tmp_path, tiny_config())


def test_a_gguf_without_keys_has_no_bos_or_eos(tmp_path: Path) -> None:
    """As many GGUFs of Qwen2 are, where the engine takes the comma for both."""
    import gguf

    tokens = [*"abcdefghijk", ",", *"lmno"]
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "qwen2")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with Model(tmp_path / "v.gguf", vocab_only=True) as model:
        assert model.special_token("bos") is None and model.special_token("eos") is None
        assert ends(model) == set()


@pytest.mark.parametrize("entry", ["<|stop|>", {"content": "<|stop|>", "lstrip": False}])
def test_special_tokens_map(tmp_path: Path, entry: object) -> None:
    files = {"tokenizer_json": bpe(["the"], ["<|stop|>", "<|other|>"])}
    write_files(tmp_path, **files, tokenizer_config_json=PLAIN, special_tokens_map_json={"eos_token": entry})
    with opened(tmp_path) as model:
        assert model.special_token("eos") == 300 and ends(model) == {300}
    # transformers: the map wins over a configuration without `added_tokens_decoder`, and is not read with one
    other = PLAIN | {"eos_token": "<|other|>"}
    write_files(tmp_path, tokenizer_config_json=other)
    assert load_vocabulary(tmp_path, tiny_config()).special["eos"] == 300
    write_files(tmp_path, tokenizer_config_json=other | {"added_tokens_decoder": {}})
    assert load_vocabulary(tmp_path, tiny_config()).special["eos"] == 301


def test_tokens_of_the_tokenizers_class(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        tokenizer_json=bpe(["the"], ["<|endoftext|>"]),
        tokenizer_config_json={"tokenizer_class": "Qwen2TokenizerFast"},
    )
    assert load_vocabulary(tmp_path, tiny_config()).special["eos"] == 300


@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_every_listed_token_ends_an_answer(tmp_path: Path, place: str) -> None:
    template = "{% for m in messages %}<[user]>{{ m.content }}<[/turn]>{% endfor %}<[assistant]>"
    listed = [300, 302, 303]
    write_files(
        tmp_path,
        tokenizer_json=bpe(["the"], ["<|stop|>", "<[user]>", "<[/turn]>", "<[call]>", "<[assistant]>"]),
        tokenizer_config_json=STOP | {"chat_template": template},
        generation_config_json={"eos_token_id": listed} if place == "generation_config" else None,
    )
    with opened(tmp_path, eos_token_id=listed if place == "config" else 300) as model:
        assert model.special_token("eos") == 300 and ends(model) == set(listed)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([300, 301, 302, 303], "too many tokens end an answer"),
        ([300, 320], "is beyond the vocabulary"),
        ([300, "x"], "is beyond the vocabulary"),
    ],
)
def test_lists_of_ends_that_cannot_be_kept(tmp_path: Path, ids: list[object], message: str) -> None:
    write_files(
        tmp_path,
        tokenizer_json=bpe(["the"], ["<|stop|>", "<|a|>", "<|b|>", "<|c|>"]),
        tokenizer_config_json=STOP,
        generation_config_json={"eos_token_id": ids},
    )
    with pytest.raises(TokenizerError, match=message):
        load_vocabulary(tmp_path, tiny_config())


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
START = around(before=[("<|start|>", 301)])


@pytest.mark.parametrize(
    ("post_processor", "flags"),
    [
        (None, {"bos_token": "<|start|>", "add_bos_token": True}),
        (START, {"bos_token": "<|start|>"}),
        (START, {"bos_token": "<|start|>", "add_bos_token": False}),
        (START, {}),
        (around(), {"bos_token": "<|start|>", "add_bos_token": True}),
        (BYTES, {"bos_token": "<|start|>"}),
        ({"type": "Sequence", "processors": [BYTES, START]}, {}),
    ],
)
def test_the_template_of_tokenizer_json_decides_on_bos(
    tmp_path: Path, post_processor: dict[str, object] | None, flags: dict[str, object]
) -> None:
    write_files(
        tmp_path,
        tokenizer_json=bpe(["hi"], ["<|stop|>", "<|start|>"], post_processor=post_processor),
        tokenizer_config_json=STOP | PLAIN | flags,
    )
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("hi!").ids
    with opened(tmp_path) as model:
        assert model.tokenize("hi!") == expected


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        (around(before=[("<|stop|>", 300), ("<|start|>", 301)]), "puts other tokens before a text"),
        (around(before=[("<|stop|>", 300)]), "puts other tokens before a text"),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|x|>"}}]}, "is damaged"),
        ({"type": "TemplateProcessing", "single": 3}, "is damaged"),
        ({"type": "RobertaProcessing", "cls": []}, "is damaged"),
        ("x", "is damaged"),
    ],
)
def test_post_processors_that_the_engine_cannot_do(
    tmp_path: Path, post_processor: object, message: str
) -> None:
    document = bpe(["hi"], ["<|stop|>", "<|start|>"]) | {"post_processor": post_processor}
    write_files(tmp_path, tokenizer_json=document, tokenizer_config_json=STOP | {"bos_token": "<|start|>"})
    with pytest.raises(TokenizerError, match=f"post_processor: {message}"):
        load_vocabulary(tmp_path, tiny_config())


AFTER = around(after=[("<|stop|>", 300)])


@pytest.mark.parametrize(("post_processor", "flags"), [(None, {"add_eos_token": True}), (AFTER, {})])
def test_no_eos_behind_what_is_to_be_continued(
    tmp_path: Path, post_processor: dict[str, object] | None, flags: dict[str, object]
) -> None:
    tokenizer = bpe(["the", " end"], ["<|stop|>"], post_processor=post_processor)
    write_files(tmp_path, tokenizer_json=tokenizer, tokenizer_config_json=STOP | flags)
    with opened(tmp_path) as model:
        tokens = model.tokenize("the end")
        assert tokens and 300 not in tokens
    # the engine's server asks the engine itself, which goes by this key
    assert read_header(tmp_path / "v.gguf").metadata["tokenizer.ggml.add_eos_token"] is False


def test_a_gguf_that_asks_for_eos_gets_none(tmp_path: Path) -> None:
    """As GGUFs of other converters do."""
    write_files(tmp_path, tokenizer_json=bpe(["the"], ["<|stop|>"]), tokenizer_config_json=STOP)
    path = vocabulary_gguf(tmp_path, tmp_path / "v.gguf")
    data = path.read_bytes()
    key = b"tokenizer.ggml.add_eos_token\x07\0\0\0"  # type 7 is a bool
    assert data.count(key + b"\0") == 1
    path.write_bytes(data.replace(key + b"\0", key + b"\1"))
    assert read_header(path).metadata["tokenizer.ggml.add_eos_token"] is True
    with Model(path, vocab_only=True) as model:
        assert 300 not in model.tokenize("the")


TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHAT = {"eos_token": "<|im_end|>"}


def chat_folder(folder: Path, **files: object) -> Path:
    return write_files(folder, tokenizer_json=bpe(["the"], ["<|im_start|>", "<|im_end|>"]), **files)


def test_the_file_of_the_chat_template_wins(tmp_path: Path) -> None:
    both = CHAT | {"chat_template": "FROM CONFIG " + TURN}
    chat_folder(tmp_path, chat_template_jinja="FROM FILE " + TURN, tokenizer_config_json=both)
    with opened(tmp_path) as model:
        text = ChatTemplate(model).render([{"role": "user", "content": "x"}], answer_next=True)
    assert text == "FROM FILE <|im_start|>user\nx<|im_end|>\n"


def test_line_ends_of_windows_in_a_chat_template(tmp_path: Path) -> None:
    chat_folder(tmp_path, tokenizer_config_json=CHAT)
    (tmp_path / "chat_template.jinja").write_bytes(TURN.replace("\n", "\r\n").encode())
    assert load_vocabulary(tmp_path, tiny_config()).chat_template == TURN


def test_templates_with_names_and_no_default_are_listed(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T " + TURN}, {"name": "rag", "template": "R " + TURN}]
    chat_folder(tmp_path, tokenizer_config_json=CHAT | {"chat_template": named})
    with opened(tmp_path) as model, pytest.raises(InferenceError) as caught:
        ChatTemplate(model)
    line = str(caught.value)
    assert "no template of the name default" in line and "rag, tool_use" in line


def test_additional_templates_of_a_folder(tmp_path: Path) -> None:
    chat_folder(tmp_path, chat_template_jinja="MAIN " + TURN, tokenizer_config_json=CHAT)
    write_files(tmp_path / "additional_chat_templates", rag_jinja="RAG " + TURN)
    template = load_vocabulary(tmp_path, tiny_config()).chat_template
    assert template == [
        {"name": "default", "template": "MAIN " + TURN},
        {"name": "rag", "template": "RAG " + TURN},
    ]


LINES = ["the bird sings in the tree and says hello to the world"] * 60


def test_tokens_that_only_tokenizer_json_adds_beside_sentencepiece(tmp_path: Path) -> None:
    sentencepiece_model(tmp_path, LINES, size=300)
    texts = {0: "<unk>", 1: "<s>", 2: "</s>", 310: "<|im_start|>", 311: "<|im_end|>"}
    added = [{"id": number, "content": text, "special": True} for number, text in texts.items()]
    write_files(
        tmp_path,
        tokenizer_json={"added_tokens": added, "model": {"type": "BPE", "byte_fallback": True}},
        tokenizer_config_json={"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"},
    )
    with opened(tmp_path) as model:
        tokens = model.tokenize("<|im_start|>the bird<|im_end|>")
        assert tokens[:2] == [1, 310] and tokens[-1] == 311
        assert ends(model) == {2, 311}


@pytest.mark.parametrize("kind", ["bos", "eos"])
def test_sentencepiece_without_bos_or_eos(tmp_path: Path, kind: str) -> None:
    sentencepiece_model(tmp_path, LINES, size=300, **{f"{kind}_id": -1})
    write_files(tmp_path, tokenizer_config_json={"tokenizer_class": "LlamaTokenizer"})
    with opened(tmp_path) as model:
        assert model.special_token(kind) is None
        assert model.special_token("eos" if kind == "bos" else "bos") in (1, 2)
        words = {token for token in range(1, 300) if not model.token_text(token).startswith("<")}
        assert not words & ends(model) and not words & set(model.tokenize("")[:1])


def test_a_bpe_without_merges_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, tokenizer_json=bpe([], ["<|stop|>"]), tokenizer_config_json=STOP)
    with pytest.raises(TokenizerError, match=r"model\.merges: has no merges"):
        load_vocabulary(tmp_path, tiny_config())
