"""JSON forms of results, and numbers with units."""

from __future__ import annotations

import doctest
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sb_edge.util import output, table


@dataclass(frozen=True)
class Inner:
    value: float

    def to_json(self) -> dict[str, Any]:
        return output.json_fields(self) | {"double": 2 * self.value}


@dataclass(frozen=True)
class Outer:
    name: str
    items: tuple[Inner, ...]
    by_name: dict[str, Inner]

    @property
    def count(self) -> int:
        return len(self.items)


OUTER = Outer("x", (Inner(1.0),), {"a": Inner(2.0)})


def test_dataclasses_become_dictionaries_and_classes_may_decide() -> None:
    first, second = {"value": 1.0, "double": 2.0}, {"value": 2.0, "double": 4.0}
    assert output.to_json([OUTER]) == [{"name": "x", "items": [first], "by_name": {"a": second}}]
    assert output.json_fields(OUTER, "count", "name") == {"count": 1, "name": "x"}


def test_json_goes_where_it_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def render(console: Console) -> None:
        console.print("for a person")

    output.emit(OUTER, str(tmp_path / "found.json"), render)
    assert capsys.readouterr().out == "for a person\n"
    assert json.loads((tmp_path / "found.json").read_text()) == output.to_json(OUTER)
    output.emit(OUTER, "-", render)
    assert json.loads(capsys.readouterr().out) == output.to_json(OUTER)


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.write_json(tmp_path / "found.json", Inner(float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_the_examples_in_docstrings() -> None:
    for module in (output, table):
        found = doctest.testmod(module)
        assert found.failed == 0 and found.attempted > 0
