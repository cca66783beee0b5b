"""Finished measurements in a file: made once, and what the file must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sb_edge.evaluate.finished import Finished
from sb_edge.evaluate.retrieval import RecallTask, RetrievalScore
from sb_edge.util.errors import InferenceError

SCORES = [RetrievalScore(RecallTask("dictionary", 16, 2, 5), (True, False), -0.25)]
WHAT = {"measure": "recall", "spikes": None}


def never() -> list[RetrievalScore]:
    raise AssertionError("measured again")


def test_a_measurement_is_made_once(tmp_path: Path) -> None:
    """Two evaluations share a file: neither loses what the other has added."""
    path = tmp_path / "parts.json"
    first, second = Finished(path), Finished(path)
    assert first.take(WHAT, list[RetrievalScore], lambda: SCORES) == SCORES
    other = WHAT | {"spikes": 3.0}
    assert second.take(other, list[RetrievalScore], list) == []
    again = Finished(path)
    assert again.take(WHAT, list[RetrievalScore], never) == SCORES
    assert again.take(other, list[RetrievalScore], never) == []
    assert [part["what"] for part in json.loads(path.read_text()).values()] == [WHAT, other]
    assert Finished().take(WHAT, list[RetrievalScore], lambda: SCORES) == SCORES


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"what": {}, "b": 0}}', b"[" * 100_000, b"\xff\xfe"],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "parts.json"
    path.write_bytes(content)
    with pytest.raises(InferenceError, match=r"parts\.json: does not hold finished measurements"):
        Finished(path)
    assert path.read_bytes() == content


def test_a_result_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    Finished(path).take(WHAT, list[int], lambda: [1])
    with pytest.raises(InferenceError, match="does not hold finished measurements"):
        Finished(path).take(WHAT, list[RetrievalScore], never)
