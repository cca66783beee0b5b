"""A conversation with a model on a device, which keeps its state; a lost connection is taken up again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sb_edge.device.description import Device
from sb_edge.device.transport import STATUS, ConnectionLost, last_line
from sb_edge.util.errors import RemoteError
from sb_edge.util.validation import first_problem

LINE_LIMIT = 1 << 20
ANSWER_LIMIT = 1 << 24
_STATUS = STATUS.encode()


class _Line(BaseModel):
    """A line of the device program: its greeting (`turns`), part of an answer (`text`) or end (`turn`)."""

    model_config = ConfigDict(strict=True, extra="ignore")

    turns: Annotated[int, Field(ge=0)] | None = None
    text: str | None = None
    turn: Annotated[int, Field(ge=0)] | None = None
    read: Annotated[int, Field(ge=0)] = 0
    read_ns: Annotated[int, Field(ge=0)] = 0
    written: Annotated[int, Field(ge=0)] = 0
    written_ns: Annotated[int, Field(ge=0)] = 0
    tokens: Annotated[int, Field(ge=0)] = 0


class AnswerStats(BaseModel):
    """Counts and times of an answer; times in nanoseconds."""

    read: int
    read_ns: int
    written: int
    written_ns: int
    tokens: int

    def __str__(self) -> str:
        read, written = (
            f"{count} tokens {what} ({count * 1e9 / ns:.2f}/s)" if ns else f"{count} tokens {what}"
            for count, ns, what in (
                (self.read, self.read_ns, "read"),
                (self.written, self.written_ns, "written"),
            )
        )
        return f"{read}, {written}, {self.tokens} in the context"


class DeviceChat:
    """A conversation on a device. Use as a context manager.

    Args:
        device: the device; it has the program.
        arguments: the program's, from `chat` on.

    Raises:
        RemoteError: the program fails there.
    """

    def __init__(self, device: Device, arguments: list[str]) -> None:
        self._device, self._transport = device, device.transport
        self._arguments = arguments
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.turns = 0

    def __enter__(self) -> DeviceChat:
        try:
            self._transport.retry(self._open)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def say(self, text: str, show: Callable[[str], object]) -> AnswerStats:
        """Send the user's next turn, again after a lost connection; pass on the answer as it comes.

        Args:
            text: the turn.
            show: called with each part of the answer.

        Raises:
            ConnectionLost: the device stays away.
            RemoteError: the program fails there, or sends something else than an answer.
        """
        turn, shown = self.turns + 1, 0

        def attempt() -> AnswerStats:
            nonlocal shown
            self._open()
            self._send(json.dumps({"turn": turn, "text": text}))
            answer = ""
            while (line := self._read()).turn is None:
                answer += line.text or ""
                if len(answer) > ANSWER_LIMIT:
                    raise RemoteError("the device sends too much", item=self._transport.address)
                show(answer[shown:])
                shown = max(shown, len(answer))
            return AnswerStats(**line.model_dump(include=set(AnswerStats.model_fields)))

        stats = self._transport.retry(attempt)
        self.turns = turn
        return stats

    def _open(self) -> None:
        if self._process is not None:
            return
        script = self._device.checked(*self._arguments)
        self._process = self._stack.enter_context(self._transport.process(script))
        self.turns = max(self.turns, self._read().turns or 0)

    def _send(self, line: str) -> None:
        process = self._process
        try:
            if process is not None and process.stdin is not None:
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
        except BrokenPipeError:
            pass  # reading finds out why

    def _read(self) -> _Line:
        data = self._line()
        while data == b"\n":
            data = self._line()
        if not data.endswith(b"\n") or data.startswith(_STATUS):
            self._end(data)
        try:
            return _Line.model_validate_json(data)
        except ValidationError as error:
            raise RemoteError(
                "answers in a form that is not valid",
                item=self._transport.address,
                found=first_problem(error).line[:200],
            ) from None

    def _line(self) -> bytes:
        """A line of the program's output; cut where it is too long, "" at the end."""
        process = self._process
        return b"" if process is None or process.stdout is None else process.stdout.readline(LINE_LIMIT)

    def _end(self, data: bytes) -> None:
        """The program has ended, or the connection has.

        Raises:
            RemoteError: the program reports an error.
            ConnectionLost: it was killed, or nothing is known.
        """
        if len(data) >= LINE_LIMIT:
            raise RemoteError("the device sends too much", item=self._transport.address)
        process = self._process
        errors = b"" if process is None or process.stderr is None else process.stderr.read(LINE_LIMIT)
        reason = last_line(errors.decode(errors="replace"))
        self._process = None
        self._stack.close()
        number = data.removeprefix(_STATUS).strip()
        if data.startswith(_STATUS) and number.isdigit() and 0 < int(number) < 128:
            raise RemoteError(
                "the device program failed",
                item=self._transport.address,
                found=reason or f"status {int(number)}",
            )
        raise ConnectionLost("no answer", item=self._transport.address, found=reason or "the program ended")
