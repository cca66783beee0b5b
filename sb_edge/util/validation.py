"""The first problem of data that a pydantic model refuses."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError


class FirstProblem(NamedTuple):
    """The problem of a value.

    Attributes:
        key: Dotted key of the value; "" for the whole.
        message: The problem, beginning in lower case.
        found: The value as Python writes it; "nothing" if it is missing.
        line: Key and problem in one.
    """

    key: str
    message: str
    found: str
    line: str


def first_problem(error: ValidationError, whole: str = "") -> FirstProblem:
    """The first problem that pydantic reports.

    Args:
        error: pydantic's.
        whole: How `line` calls a problem of the whole; "": without a name.
    """
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    text = first["msg"].removeprefix("Value error, ")
    found = "nothing" if first["type"] == "missing" else repr(first["input"])
    place = key or whole
    return FirstProblem(key, text[:1].lower() + text[1:], found, f"{place}: {text}" if place else text)
