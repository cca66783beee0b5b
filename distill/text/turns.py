"""How a base's special tokens mark the turns of a chat."""

from __future__ import annotations

from dataclasses import dataclass

from sb_edge.distill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turns:
    """A format of chats.

    Attributes:
        prompt: Format of a user's turn, the text replacing {}; an answer follows.
        end: what follows the answer.
    """

    prompt: str
    end: str


_KNOWN = {
    "<|im_start|>": Turns("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
    "<|start_header_id|>": Turns(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}


def turns_of(tokenizer: Tokenizer) -> Turns | None:
    """ChatML or Llama 3's format, by the special tokens that there are; None without either."""
    return next((turns for token, turns in _KNOWN.items() if tokenizer.token(token) is not None), None)
