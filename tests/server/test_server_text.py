"""What the engine's server makes of special tokens in the GGUFs of `sb-edge convert`."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import RunningServer, running_server
from text_checkpoints import LLAMA3, around, bpe, model_gguf, write_files
from tokenizers import Tokenizer

pytestmark = pytest.mark.engine

COMMA = 11


def test_special_tokens_that_a_checkpoint_names(tmp_path: Path) -> None:
    added = ["<|stop|>", "<|start|>", "<[turn]>", "<[call]>"]
    around_text = around(before=[("<|start|>", 301)], after=[("<|stop|>", 300)])
    document = bpe(["the"], added, regex=LLAMA3, unmerged=[" zebra"], post_processor=around_text)
    folder = write_files(
        tmp_path / "named",
        tokenizer_json=document,
        tokenizer_config_json={
            "eos_token": "<|stop|>",
            "add_bos_token": False,
            "chat_template": "FROM CONFIG",
        },
        generation_config_json={"eos_token_id": [300, 302, 303]},
        chat_template_jinja="FROM FILE",
    )
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with running_server(model_gguf(folder), ("-c", "1024")) as server:
        for text in ("the zebra", "zebra 12345"):
            tokens = server.ask("/tokenize", {"content": text, "add_special": True})["tokens"]
            assert [*tokens, 300] == library.encode(text).ids  # a prompt is there to be continued
        assert (
            server.ask("/apply-template", {"messages": [{"role": "user", "content": "x"}]})["prompt"]
            == "FROM FILE"
        )
        for end in (300, 302, 303):
            assert forced(server, end) == ("eos", 1)
        assert forced(server, COMMA) == ("limit", 4)


def test_no_special_tokens(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path / "none",
        tokenizer_json=bpe(["the"], ["<|x|>"]),
        tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast"},
    )
    with running_server(model_gguf(folder), ("-c", "1024")) as server:
        assert forced(server, COMMA) == ("limit", 4)
        assert COMMA not in server.ask("/tokenize", {"content": "the", "add_special": True})["tokens"]


def forced(server: RunningServer, token: int) -> tuple[str, int]:
    """Why an answer ended in which only `token` is likely, and its number of tokens."""
    request = {"prompt": "the", "n_predict": 4, "temperature": 0, "logit_bias": [[token, 1000.0]]}
    answer = server.ask("/completion", request)
    return answer["stop_type"], answer["tokens_predicted"]
