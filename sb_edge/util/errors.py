"""Errors that a user can act on.

Every error says which file, which key or tensor in it, what was found, what was expected and what to do,
on one line. Only the command line turns these into messages and exit codes; the library raises them.
"""

from __future__ import annotations

from pathlib import Path


class SbEdgeError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong, a short phrase.
        path: the file or folder at fault.
        item: the key, tensor or field in that file.
        found: what was there.
        expected: what should have been there.
        hint: what the user can do about it.
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
        return " ".join(line.split())


class CheckpointError(SbEdgeError):
    """A safetensors checkpoint is truncated, corrupt, incomplete or holds something unknown."""


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
    """An output file could not be written: no space, no permission, or already there."""


class OutOfMemoryForecast(SbEdgeError):
    """What was asked for will not fit in this machine's memory."""


class ParityError(SbEdgeError):
    """Two computations that must agree do not, or cannot be compared."""


class DeviceError(SbEdgeError):
    """The reference was asked for a device that this machine does not have."""


class SpikeError(SbEdgeError):
    """A spiking setting is impossible: k, a projection's name, a count that a coding cannot carry."""


class TrainingError(SbEdgeError):
    """Distillation cannot start, go on or be resumed: its text, its settings, its checkpoint or its loss."""


class SparseError(SbEdgeError):
    """A model cannot have a sparse layout, or none keeps the budget."""
