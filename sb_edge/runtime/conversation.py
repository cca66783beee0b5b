"""A conversation: the model's chat template over a session whose state is kept between turns."""

from __future__ import annotations

import json
from collections.abc import Generator as PyGenerator
from dataclasses import dataclass, field
from pathlib import Path

from sb_edge.runtime.generation import Generation, Stopping
from sb_edge.runtime.plain_text import marked
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Session
from sb_edge.runtime.template import ChatTemplate, Message
from sb_edge.util.errors import StateError


@dataclass
class Conversation:
    """Turns of a conversation on one session.

    Only the new part of a turn is evaluated: a recurrent state cannot be taken back, so as long as the
    conversation as rendered begins with what the session has seen, the rest is appended; otherwise (a
    template that rewrites earlier turns, another text in the session) the session is cleared and reads the
    conversation again.
    """

    session: Session
    sampling: Sampling
    system: str | None = None
    stopping: Stopping = field(default_factory=Stopping)
    messages: list[Message] = field(default_factory=list)
    _seen: str = ""
    _tokens: list[int] = field(default_factory=list)
    _revision: int = 0

    def __post_init__(self) -> None:
        self._template = ChatTemplate(self.session.model)
        self.clear()

    def clear(self) -> None:
        """Begin a new conversation."""
        self._forget()
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def save(self, path: Path) -> None:
        """Write the conversation and the state to a file, complete or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        if self._revision != self.session.revision:
            self._forget()
        text = json.dumps({"messages": self.messages, "seen": self._seen})
        self.session.save(path, self._tokens, text=text)

    def load(self, path: Path) -> None:
        """Continue a conversation that `save` wrote; what it replaces is forgotten.

        Raises:
            StateError: damaged, from other weights, or no conversation; nothing is changed then.
        """
        messages, seen, tokens = self._read(path)
        self.messages, self._seen, self._tokens = messages, seen, tokens
        self._revision = self.session.revision

    def _read(self, path: Path) -> tuple[list[Message], str, list[int]]:
        before = self.session.seq_state(), self._tokens
        saved = self.session.load_saved(path)
        try:
            content = json.loads(saved.text)
            messages, seen = content["messages"], content["seen"]
            sound = isinstance(seen, str) and all(
                isinstance(message["role"], str) and isinstance(message["content"], str)
                for message in messages
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            self.session.set_seq_state(before[0])
            raise StateError(
                "is not a saved conversation", path=path, hint="it may be a state of `sb-edge generate`"
            )
        return [{"role": each["role"], "content": each["content"]} for each in messages], seen, saved.tokens

    def say(self, text: str) -> tuple[Generation, PyGenerator[str, None, None]]:
        """Add a user's turn and answer it.

        Returns:
            The generation, for its statistics, and the answer's text piece by piece. The turn is complete
            when the iterator ends or is closed; an answer broken off stays in the conversation as far as it
            came. A turn whose text was not read to its end is left out.

        Raises:
            InferenceError: the conversation no longer fits the context, or the model is closed.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self._template.render(messages, answer_next=True)
        tokens = self._new_tokens(prompt)
        generation = Generation(
            self.session, tokens, self.sampling, history=self._tokens, stopping=self.stopping
        )
        return generation, self._answer(generation, messages, prompt)

    def _new_tokens(self, prompt: str) -> list[int]:
        model = self.session.model
        is_current = self._revision == self.session.revision
        if is_current and self._seen and self._tokens and prompt.startswith(self._seen):
            return model.tokenize_marked(prompt[len(self._seen) :], after=self._tokens[-1])
        self._forget()
        return model.tokenize_marked(prompt)

    def _forget(self) -> None:
        """Let the next turn read the whole conversation again."""
        self.session.clear()
        self._seen, self._tokens, self._revision = "", [], self.session.revision

    def _answer(
        self, generation: Generation, messages: list[Message], prompt: str
    ) -> PyGenerator[str, None, None]:
        # Until the answer is complete the session holds something that `_seen` does not describe.
        seen, self._seen = self._seen, ""
        pieces: list[str] = []
        try:
            for piece in generation:
                pieces.append(piece)
                yield piece
        finally:
            if generation.has_read_prompt:
                answer = "".join(pieces)
                self.messages = [*messages, {"role": "assistant", "content": answer}]
                is_open = generation.is_current and self.session.position() < self.session.n_ctx
                if is_open and generation.stats.stopped != "stop":
                    generation.evaluate_rest()
                    self._seen = prompt + marked(answer, self.session.model.tokenization.control_texts)
                self._tokens += [*generation.prompt, *generation.tokens[: generation.evaluated]]
                self._revision = generation.revision
            elif generation.seen:
                self._forget()
            else:
                self._seen, self._revision = seen, generation.revision
