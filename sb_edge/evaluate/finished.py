"""Finished measurements in one JSON file, so that a long evaluation can be made in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sb_edge.engine.cache import content_key
from sb_edge.util.errors import InferenceError
from sb_edge.util.input_files import read_input
from sb_edge.util.output import write_json
from sb_edge.util.validation import first_problem

Result = TypeVar("Result")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    what: dict[str, Any]
    result: Any


_PARTS = TypeAdapter(dict[str, _Part])


class Finished:
    """Measurements under their keys; a file keeps each as soon as it is finished.

    Args:
        path: JSON file, made with the first measurement; None: nothing is kept.

    Raises:
        InferenceError: the file holds something else.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._parts = self._read()

    def take(self, what: dict[str, Any], kind: type[Result], measure: Callable[[], Result]) -> Result:
        """Return a measurement; make it now unless the file has it.

        Args:
            what: everything that decides the result, as JSON values.
            kind: type of the result, which pydantic can write and read.
            measure: makes it.

        Raises:
            InferenceError: the file has another type of result under this key.
            OutputError: the file cannot be written.
        """
        key = content_key(what)
        adapter = TypeAdapter(kind)
        if key in self._parts:
            try:
                return adapter.validate_python(self._parts[key].result)
            except ValidationError as error:
                raise self._damaged(f"{key}.{first_problem(error, 'result').line}") from None
        result = measure()
        if self._path is not None:
            part = _Part(what=what, result=adapter.dump_python(result, mode="json"))
            self._parts = self._read() | {key: part}  # another process may have added some
            write_json(self._path, _PARTS.dump_python(self._parts, mode="json"))
        return result

    def _read(self) -> dict[str, _Part]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            return _PARTS.validate_json(read_input(self._path, InferenceError))
        except ValidationError as error:
            raise self._damaged(first_problem(error, "file").line) from None

    def _damaged(self, found: str) -> InferenceError:
        return InferenceError(
            "does not hold finished measurements",
            path=self._path,
            found=found,
            hint="name another file, or remove it",
        )
