"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from typing import Any

from sb_edge.runtime import template_worker
from sb_edge.runtime.model import Model
from sb_edge.runtime.plain_text import marked
from sb_edge.runtime.tokenization import require_unicode
from sb_edge.util.errors import InferenceError

Message = dict[str, str]

CPU_SECONDS = 5.0
"""Processor time for one rendering; it does not pass while other programs run."""
_DEADLINE = 120.0
"""Seconds for one rendering, where the system counts no processor time or gives none."""


class ChatTemplate:
    """The Jinja template of a GGUF, run in a sandbox in a process of its own: files come from strangers.

    Raises:
        InferenceError: the model has no template, or one that is not valid.
    """

    def __init__(self, model: Model) -> None:
        model.require_vocab()
        source = model.chat_template
        names = model.header.metadata.get("tokenizer.chat_templates")
        if source is None and isinstance(names, list):
            raise InferenceError(
                "has no template of the name default",
                path=model.path,
                item="tokenizer.chat_templates",
                found=", ".join(sorted(map(str, names)))[:200],
                hint="convert the checkpoint again with the template to use in chat_template.jinja",
            )
        if source is None:
            raise InferenceError(
                "has no chat template",
                path=model.path,
                item="tokenizer.chat_template",
                hint="use `sb-edge generate`, or convert a checkpoint whose tokenizer has one",
            )
        self._model = model
        self._source = source
        self._worker: subprocess.Popen[bytes] | None = None
        self._start()

    def render(self, messages: list[Message], *, answer_next: bool) -> str:
        """The conversation as the model was trained to see it, for `Model.tokenize_marked`.

        Args:
            messages: {"role": ..., "content": ...}; control tokens in the content are marked as text.
            answer_next: end with the opening of the assistant's turn.

        Raises:
            InferenceError: the template refuses the conversation, or takes too much time, memory or space.
        """
        model = self._model
        numbers = {
            name: model.special_token(kind)
            for name, kind in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        }
        tokens = {
            f"{name}_token": model.token_text(number)
            for name, number in numbers.items()
            if number is not None
        }
        for message in messages:
            require_unicode(message["content"])
        plain = [
            message | {"content": marked(message["content"], model.tokenization.control_texts)}
            for message in messages
        ]
        variables = {
            "messages": plain,
            "tools": None,
            "documents": None,
            "add_generation_prompt": answer_next,
        }
        text = self._ask({"variables": variables | tokens})
        # Where the vocabulary adds BOS by itself, one written by the template would double it.
        return text.removeprefix(tokens["bos_token"]) if model.adds_bos and "bos_token" in tokens else text

    def _start(self) -> None:
        # -P: the modules beside the script are none of its own.
        command = [sys.executable, "-P", template_worker.__file__, str(CPU_SECONDS)]
        self._worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, _stop, self._worker)
        self._ask({"source": self._source})

    def _ask(self, request: dict[str, Any]) -> str:
        """Send a request to the worker and read its answer."""
        if self._worker is None:
            self._start()
        worker = self._worker
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        alarm = threading.Timer(_DEADLINE, worker.kill)
        alarm.start()
        try:
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:
            # An answer to a request that was given up would be taken for the next one's.
            self._worker = None
            _stop(worker)
            raise
        finally:
            alarm.cancel()
        if not line:
            self._worker = None
            _stop(worker)
            raise self._error(
                f"more than {CPU_SECONDS:.0f} seconds or {template_worker.MAX_MEMORY >> 20} MiB"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(answer["error"])
        text = str(answer["text"])
        try:
            require_unicode(text)
        except InferenceError:
            raise self._error("half a surrogate pair") from None
        return text

    def _error(self, found: str) -> InferenceError:
        return InferenceError(
            "the chat template does not work",
            path=self._model.path,
            item="tokenizer.chat_template",
            found=found,
        )


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()
