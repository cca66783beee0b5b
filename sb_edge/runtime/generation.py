"""Generating text token by token."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sb_edge.runtime.sampling import Sampler, Sampling
from sb_edge.runtime.session import Session


@dataclass
class GenerationStats:
    """What a generation took.

    Attributes:
        prompt_tokens, prompt_seconds: tokens evaluated before the first new one, and the time that took.
        tokens, seconds: new tokens, and the time from the first of them to the last.
        stopped: "end" (the model ended its answer), "length" or "context" (full), "" while running.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def rate(self) -> float:
        """New tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"prompt {self.prompt_tokens} tokens, {self.prompt_rate:.1f} tokens/s; "
            f"answer {self.tokens} tokens, {self.rate:.1f} tokens/s"
        )


class Generation:
    """One answer: iterate over it for its text, piece by piece.

    Args:
        session: where the text so far was evaluated; it moves on with every token.
        prompt: token ids to evaluate first, at least one.
        sampling: how tokens are chosen.
        n_predict: at most so many new tokens; None: until the model ends or the context is full.
        ignore_end: go on after end-of-generation tokens.

    Attributes:
        tokens: the new token ids, without the end-of-generation token.
        evaluated: how many of `tokens` the session has seen; the last chosen one may be missing.
        stats: times and counts.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        n_predict: int | None = None,
        ignore_end: bool = False,
    ) -> None:
        self.session = session
        self.prompt = prompt
        self.sampling = sampling
        self.n_predict = n_predict
        self.ignore_end = ignore_end
        self.tokens: list[int] = []
        self.evaluated = 0
        self.stats = GenerationStats(prompt_tokens=len(prompt))

    def __iter__(self) -> Iterator[str]:
        # A token may end in the middle of a character: the decoder holds such bytes back.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.ids():
            text = decoder.decode(self.session.model.token_piece(token))
            if text:
                yield text
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def ids(self) -> Iterator[int]:
        """The new token ids, one at a time; needs no vocabulary if `ignore_end`."""
        stats, session = self.stats, self.session
        start = time.perf_counter()
        session.evaluate(self.prompt)
        stats.prompt_seconds = time.perf_counter() - start
        with Sampler(session, self.sampling) as sampler:
            first = time.perf_counter()
            while not stats.stopped:
                token = sampler.next_token()
                if not self.ignore_end and session.model.is_end_of_generation(token):
                    stats.stopped = "end"
                    break
                self.tokens.append(token)
                stats.tokens = len(self.tokens)
                stats.seconds = time.perf_counter() - first
                yield token
                if self.n_predict is not None and len(self.tokens) >= self.n_predict:
                    stats.stopped = "length"
                elif session.position() >= session.n_ctx:
                    stats.stopped = "context"
                else:
                    session.evaluate([token])
                    self.evaluated = len(self.tokens)

    def evaluate_rest(self) -> None:
        """Let the session see the last token chosen too, which nothing has followed yet.

        Raises:
            InferenceError: the context is full.
        """
        pending = self.tokens[self.evaluated :]
        if pending:
            self.session.evaluate(pending)
            self.evaluated = len(self.tokens)
