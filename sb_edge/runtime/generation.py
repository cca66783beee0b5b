"""Generating text token by token."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sb_edge.runtime.sampling import Sampler, Sampling
from sb_edge.runtime.session import Session
from sb_edge.util.errors import InferenceError


@dataclass
class GenerationStats:
    """What a generation took.

    Attributes:
        prompt_tokens, prompt_seconds: tokens evaluated before the first new one, and the time that took.
        tokens, seconds: new tokens, and the time from the first of them to the last.
        stopped: "end" (the model ended its answer), "stop" (a stop text), "length" or "context" (full), or ""
            while running.
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


@dataclass(frozen=True)
class Stopping:
    """When an answer ends, besides the model's own end of generation.

    Attributes:
        n_predict: Maximum number of tokens; None: until the model ends or the context is full.
        stops: Texts that end the answer and are removed.
        reverse_prompts: Texts that end the answer and are kept.

    Raises:
        InferenceError: no token may be generated, or a text is empty.
    """

    n_predict: int | None = None
    stops: tuple[str, ...] = ()
    reverse_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n_predict is not None and self.n_predict < 1:
            raise InferenceError("maximum number of tokens", found=self.n_predict, expected="at least 1")
        if "" in (*self.stops, *self.reverse_prompts):
            raise InferenceError("an empty text cannot end the output", hint="name the text to stop at")


class Generation:
    """One answer: iterate over it for its text, piece by piece.

    Args:
        session: where the text so far was evaluated; it moves on with every token.
        prompt: token ids to evaluate first, at least one.
        history: token ids that the session has seen before, for the penalties.
        sampling: how tokens are chosen.
        stopping: When the answer ends.
        ignore_end: go on after end-of-generation tokens.

    Attributes:
        tokens: the new token ids, without the end-of-generation token.
        stats: times and counts.
        seen: how many of the prompt's and the new tokens the session has seen, whatever ended the generation.
        revision: the session's after the last evaluation; see `is_current`.

    Raises:
        InferenceError: the prompt is empty.
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        history: Sequence[int] = (),
        stopping: Stopping | None = None,
        ignore_end: bool = False,
    ) -> None:
        if not len(prompt):
            raise InferenceError("the prompt is empty", path=session.model.path, hint="give some text")
        self.session = session
        self.prompt = prompt
        self.sampling = sampling
        self.stopping = stopping or Stopping()
        self.ignore_end = ignore_end
        self.history = history
        self.tokens: list[int] = []
        self._start = session.position()
        self.seen = 0
        self.revision = session.revision
        self.stats = GenerationStats(prompt_tokens=len(prompt))

    @property
    def is_current(self) -> bool:
        """False once another text has changed the session."""
        return self.session.revision == self.revision

    @property
    def has_read_prompt(self) -> bool:
        """Whether the session has seen the whole prompt."""
        return self.seen >= len(self.prompt)

    @property
    def evaluated(self) -> int:
        """How many of `tokens` the session has seen; the last chosen one may be missing."""
        return max(self.seen - len(self.prompt), 0)

    def __iter__(self) -> Iterator[str]:
        # A token may end in the middle of a character: the decoder holds such bytes back.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held = ""
        for token in self.ids():
            held += decoder.decode(self.session.model.token_piece(token))
            found = self._stop_in(held)
            if found is not None:
                self.stats.stopped = "stop"
                held = held[:found]
                break
            ready = len(held) - self._possible_start(held)
            if ready:
                yield held[:ready]
                held = held[ready:]
        else:
            held += decoder.decode(b"", final=True)
        if held:
            yield held

    def _stop_in(self, text: str) -> int | None:
        """How much of the text is part of the answer, if one of the stop texts is in it."""
        ends = [text.index(stop) for stop in self.stopping.stops if stop in text]
        ends += [text.index(stop) + len(stop) for stop in self.stopping.reverse_prompts if stop in text]
        return min(ends, default=None)

    def _possible_start(self, text: str) -> int:
        """Characters at the end of the text that may begin a stop text, which are held back."""
        lengths = [
            size
            for stop in (*self.stopping.stops, *self.stopping.reverse_prompts)
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ]
        return max(lengths, default=0)

    def ids(self) -> Iterator[int]:
        """The new token ids, one at a time; needs no vocabulary if `ignore_end`."""
        stats, session = self.stats, self.session
        start = time.perf_counter()
        self._evaluate(self.prompt)
        stats.prompt_seconds = time.perf_counter() - start
        with Sampler(session, self.sampling, [*self.history, *self.prompt]) as sampler:
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
                limit = self.stopping.n_predict
                if limit is not None and len(self.tokens) >= limit:
                    stats.stopped = "length"
                elif session.position() >= session.n_ctx:
                    stats.stopped = "context"
                else:
                    self._evaluate([token])

    def _evaluate(self, tokens: Sequence[int]) -> None:
        if not self.is_current:
            raise InferenceError(
                "the context holds another text by now", hint="finish a stream before beginning the next"
            )
        try:
            self.session.evaluate(tokens)
        finally:
            self.seen = self.session.position() - self._start
            self.revision = self.session.revision

    def evaluate_rest(self) -> None:
        """Let the session see the last token chosen too, which nothing has followed yet.

        Raises:
            InferenceError: the context is full, or holds another text.
        """
        pending = self.tokens[self.evaluated :]
        if pending:
            self._evaluate(pending)
