"""A vocabulary on its way between tokenizer.json and GGUF, in both directions: the same tokens everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from dense_shapes import dense_shapes
from text_checkpoints import LLAMA3, QWEN2, SIZE, Json, bpe, tiny_config, vocabulary_gguf, write_files
from tokenizers import Tokenizer

from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.convert.vocab.vocabulary import load_vocabulary
from sb_edge.runtime.model import Model
from sb_edge.util.errors import TokenizerError

pytestmark = pytest.mark.engine

TEXTS = ["the zebra", "zebra zebras  the\n", "cafe\u0301 12345", "<|end_of_text|>the<|eot_id|>"]
ADDED = ["<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>"]


@pytest.mark.parametrize(
    ("regex", "ignore", "pre"),
    [(LLAMA3, True, "llama-bpe"), (LLAMA3, False, "smaug-bpe"), (QWEN2, False, "qwen2"), (QWEN2, True, None)],
)
def test_words_that_no_merge_makes(tmp_path: Path, regex: str, ignore: bool, pre: str | None) -> None:
    document = bpe(["the"], ["<|stop|>"], regex=regex, unmerged=[" zebra"], ignore_merges=ignore)
    write_files(tmp_path, tokenizer_json=document, tokenizer_config_json={"eos_token": "<|stop|>"})
    if pre is None:
        with pytest.raises(TokenizerError, match=r"model\.ignore_merges: is not supported with this pre-tok"):
            load_vocabulary(tmp_path, tiny_config())
        return
    assert load_vocabulary(tmp_path, tiny_config()).pre == pre
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with Model(vocabulary_gguf(tmp_path, tmp_path / "v.gguf"), vocab_only=True) as model:
        for text in TEXTS:
            assert model.tokenize(text) == library.encode(text).ids, text


def base_gguf(path: Path, document: Json, pre: str, **keys: Any) -> Path:
    """A Llama-shaped GGUF as llama.cpp's converter writes it, without `add_bos_token`."""
    vocab = {number: text for text, number in document["model"]["vocab"].items()}
    vocab |= {token["id"]: token["content"] for token in document["added_tokens"]}
    added = {token["id"] for token in document["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 2048,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "head_count": 2,
        "head_count_kv": 1,
    }.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([vocab.get(number, f"[PAD{number}]") for number in range(SIZE)])
    writer.add_token_types([3 if n in added else 1 if n in vocab else 5 for n in range(SIZE)])
    writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    rng = np.random.default_rng(0)
    for name, shape in dense_shapes(vocab=SIZE, hidden=64, n_layer=2, kv=32, ffn=96).items():
        stem = name.removeprefix("model.").removesuffix(".weight")
        layer, _, rest = stem.removeprefix("layers.").partition(".")
        prefix = f"blk.{layer}." if stem.startswith("layers.") else ""
        target = prefix + names[rest if prefix else stem] + ".weight"
        writer.add_tensor(target, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("pre", "keys", "begins_with_bos"),
    [
        ("llama-bpe", {"bos_token_id": 301}, True),
        ("llama-bpe", {"bos_token_id": 301, "add_bos_token": False}, False),
        ("llama-bpe", {}, False),
        ("smaug-bpe", {"bos_token_id": 301, "add_bos_token": True}, True),
        ("qwen2", {"bos_token_id": 301}, False),
        ("smollm", {}, False),
    ],
)
def test_base_student_and_tokenizer_cut_alike(
    tmp_path: Path, pre: str, keys: dict[str, Any], begins_with_bos: bool
) -> None:
    document = bpe(["the", "caf\u00e9"], ADDED, unmerged=[" zebra"])
    base = base_gguf(tmp_path / "base.gguf", document, pre, eos_token_id=300, **keys)
    transplant(base, tmp_path / "student", dtype="f32")
    convert_checkpoint(tmp_path / "student", tmp_path / "student.gguf", outtype="f32")
    library = Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json"))
    with (
        Model(base, vocab_only=True) as first,
        Model(tmp_path / "student.gguf", vocab_only=True) as second,
    ):
        assert second.n_vocab == first.n_vocab == SIZE
        for text in TEXTS:
            tokens = first.tokenize(text)
            assert (tokens[:1] == [301]) is begins_with_bos
            assert second.tokenize(text) == library.encode(text).ids == tokens, text
        for kind in ("bos", "eos"):
            assert first.special_token(kind) == second.special_token(kind)


def test_every_end_of_an_answer_is_exported(tmp_path: Path) -> None:
    document = bpe(["the"], ["<|stop|>", "<[turn]>", "<[call]>"])
    ends = {"eos_token_id": 300, "eot_token_id": 301, "eom_token_id": 302}
    base = base_gguf(tmp_path / "base.gguf", document, "smollm", **ends)
    transplant(base, tmp_path / "student", dtype="f32")
    listed = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert listed == {"eos_token_id": [300, 301, 302]}
    convert_checkpoint(tmp_path / "student", tmp_path / "student.gguf", outtype="f32")
    with Model(tmp_path / "student.gguf", vocab_only=True) as model:
        assert {n for n in range(SIZE) if model.is_end_of_generation(n)} == {300, 301, 302}
