"""A conversation: the model's chat template over a session whose state is kept between turns."""

from __future__ import annotations

import datetime
import json
from collections.abc import Generator as PyGenerator
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sb_edge.runtime.generation import Generation, Stopping
from sb_edge.runtime.model import Model
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Session
from sb_edge.util.errors import InferenceError, StateError

Message = dict[str, str]


class ChatTemplate:
    """The Jinja template of a GGUF, run in a sandbox: files come from strangers.

    Raises:
        InferenceError: the model has no template, or one that is not valid.
    """

    def __init__(self, model: Model) -> None:
        model.require_vocab()
        source = model.chat_template
        if source is None:
            raise InferenceError(
                "has no chat template",
                path=model.path,
                item="tokenizer.chat_template",
                hint="use `sb-edge generate`, or convert a checkpoint whose tokenizer has one",
            )
        self._model = model
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise self._error(error) from None

    def render(self, messages: list[Message], *, answer_next: bool) -> str:
        """The conversation as the model was trained to see it.

        Args:
            messages: {"role": ..., "content": ...}.
            answer_next: end with the opening of the assistant's turn.
        """
        bos, eos = self._model.special_token("bos"), self._model.special_token("eos")
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=answer_next,
                bos_token="" if bos is None else self._model.token_text(bos),
                eos_token="" if eos is None else self._model.token_text(eos),
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise self._error(error) from None
        # Where the vocabulary adds BOS by itself, one written by the template would double it.
        if self._model.adds_bos and bos is not None:
            text = text.removeprefix(self._model.token_text(bos))
        return text

    def _refuse(self, message: str) -> None:
        raise TemplateError(message)

    def _error(self, error: Exception) -> InferenceError:
        return InferenceError(
            "the chat template does not work",
            path=self._model.path,
            item="tokenizer.chat_template",
            found=str(error) or type(error).__name__,
        )


@dataclass
class Conversation:
    """Turns of a conversation on one session.

    Only the new part of a turn is evaluated: a recurrent state cannot be taken back, so as long as the
    conversation as rendered begins with what the session has seen, the rest is appended; otherwise (a
    template that rewrites earlier turns) the session is cleared and reads the conversation again.
    """

    session: Session
    sampling: Sampling
    system: str | None = None
    stopping: Stopping = field(default_factory=Stopping)
    messages: list[Message] = field(default_factory=list)
    _seen: str = ""
    _tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._template = ChatTemplate(self.session.model)
        self.clear()

    def clear(self) -> None:
        """Begin a new conversation."""
        self.session.clear()
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self._seen, self._tokens = "", []

    def save(self, path: Path) -> None:
        """Write the conversation and the state to a file, complete or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        text = json.dumps({"messages": self.messages, "seen": self._seen})
        self.session.save(path, self._tokens, text=text)

    def load(self, path: Path) -> None:
        """Continue a conversation that `save` wrote; what it replaces is forgotten.

        Raises:
            StateError: damaged, from other weights, or no conversation; nothing is changed then.
        """
        messages, seen, tokens = self._read(path)
        self.messages, self._seen, self._tokens = messages, seen, tokens

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
            InferenceError: the conversation no longer fits the context.
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
        if self._seen and prompt.startswith(self._seen):
            return model.tokenize(prompt[len(self._seen) :], add_special=False)
        self._forget()
        return model.tokenize(prompt)

    def _forget(self) -> None:
        """Let the next turn read the whole conversation again."""
        self.session.clear()
        self._seen, self._tokens = "", []

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
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
                if generation.stats.stopped != "stop" and self.session.position() < self.session.n_ctx:
                    generation.evaluate_rest()
                    self._seen = prompt + "".join(pieces)
                self._tokens += [*generation.prompt, *generation.tokens[: generation.evaluated]]
            elif generation.seen:
                self._forget()
            else:
                self._seen = seen
