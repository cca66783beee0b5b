"""Errors that a user can act on.

Every error names the file, the key or tensor, the value found, the value expected and a remedy, on one line.
The library raises these errors; only the command line turns them into messages and exit codes.
"""

from __future__ import annotations

from pathlib import Path


def printable(text: str) -> str:
    """Text with control characters made visible; from a file or its name, they could rewrite the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class SbEdgeError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: the problem, in a short phrase.
        path: the file or folder at fault.
        item: the key, tensor or field in that file.
        found: the value found.
        expected: the value expected.
        hint: a remedy for the user.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        item: str | None = None,
        found: object | None = None,
        expected: object | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.path = None if path is None else str(path)
        self.item = item
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(self._line())

    def _line(self) -> str:
        where = ": ".join(part for part in (self.path, self.item) if part)
        line = f"{where}: {self.message}" if where else self.message
        details = []
        if self.found is not None:
            details.append(f"found {self.found}")
        if self.expected is not None:
            details.append(f"expected {self.expected}")
        if details:
            line += f" ({', '.join(details)})"
        if self.hint:
            line += f"; {self.hint}"
        return printable(" ".join(line.split()))


class CheckpointError(SbEdgeError):
    """A safetensors checkpoint is truncated, corrupt, incomplete or has unknown content."""


class ConfigError(CheckpointError):
    """A checkpoint's config.json has a missing, wrong or unsupported value."""


class TokenizerError(CheckpointError):
    """A tokenizer file is missing, damaged or of an unsupported kind."""


class GgufError(SbEdgeError):
    """A GGUF file is truncated, corrupt or of an architecture that the command cannot use."""


class EngineError(SbEdgeError):
    """The engine could not be fetched, patched, built, found or loaded."""


class InferenceError(SbEdgeError):
    """The engine refused a batch, a context or a model."""


class StateError(SbEdgeError):
    """A saved state is damaged or belongs to other weights."""


class OutputError(SbEdgeError):
    """An output file could not be written: no space, no permission, or it already exists."""


class OutOfMemoryForecast(SbEdgeError):
    """The memory forecast exceeds the memory of this machine."""


class ParityError(SbEdgeError):
    """Two computations that must agree differ, or cannot be compared."""


class DeviceError(SbEdgeError):
    """This machine does not have the device requested for the reference implementation."""


class RemoteError(SbEdgeError):
    """A phone or board cannot be reached, refuses a command, or answers with something that is not valid."""


class SpikeError(SbEdgeError):
    """A spike setting is invalid: k, the name of a projection, or a count that a coding cannot represent."""


class TrainingError(SbEdgeError):
    """Distillation cannot start, continue or resume: its text, settings, checkpoint or loss is invalid."""


class SparseError(SbEdgeError):
    """A model cannot have a sparse layout, or no layout is within the budget."""
