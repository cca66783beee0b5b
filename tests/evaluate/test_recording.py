"""Recorded logits are foreign input."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb_edge.evaluate.parity.recording import load_recording
from sb_edge.util.errors import ParityError

GOLDEN = Path(__file__).parents[1] / "data" / "gla_swa" / "golden.npz"
VOCAB = 5
IDS = np.array([0, 4, 2], np.int32)
LOGITS = np.arange(15, dtype=np.float32).reshape(3, VOCAB)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_the_golden_recording_loads() -> None:
    recording = load_recording(GOLDEN, n_vocab=256, max_tokens=2048)
    assert recording.input_ids.shape == (96,)
    assert recording.logits.shape == (96, 256)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": IDS}, "logits: is missing .*found input_ids"),
        ({"logits": LOGITS}, "input_ids: is missing"),
        ({}, "input_ids: is missing .*found no arrays"),
        ({"input_ids": IDS.astype(np.int64), "logits": LOGITS}, "input_ids: wrong type .*int64.*int32"),
        ({"input_ids": IDS.astype(">i4"), "logits": LOGITS}, "input_ids: wrong type"),
        ({"input_ids": IDS, "logits": LOGITS.astype(np.float16)}, "logits: wrong type .*float16.*float32"),
        ({"input_ids": IDS[None], "logits": LOGITS}, "input_ids: wrong shape"),
        ({"input_ids": IDS[:0], "logits": LOGITS[:0]}, "input_ids: wrong shape"),
        (
            {"input_ids": IDS[:2], "logits": LOGITS},
            r"logits: wrong shape \(found \[3, 5\], expected \[2, 5\]",
        ),
        ({"input_ids": IDS, "logits": LOGITS[:, :4]}, "logits: wrong shape .*of this model"),
        ({"input_ids": IDS, "logits": LOGITS.ravel()}, "logits: wrong shape"),
        ({"input_ids": IDS + np.int32(3), "logits": LOGITS}, r"input_ids\[1\]: .*found 7, expected 0 to 4"),
        ({"input_ids": IDS - np.int32(1), "logits": LOGITS}, r"input_ids\[0\]: .*found -1"),
        ({"input_ids": IDS, "logits": np.where(LOGITS == 7, np.nan, LOGITS)}, r"logits\[1\]: holds NaN"),
        ({"input_ids": IDS, "logits": np.array([{}], dtype=object)}, "logits: is not a plain array"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ParityError, match=f"bad.npz: {message}"):
        load_recording(path, n_vocab=VOCAB, max_tokens=8)


def test_a_prompt_longer_than_the_model_takes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(packed(input_ids=npy(IDS), logits=npy(LOGITS) + bytes(50_000_000)))
    assert path.stat().st_size < 100_000
    with pytest.raises(ParityError, match=r"bomb.npz: logits: exceeds this model's longest prompt"):
        load_recording(path, n_vocab=VOCAB, max_tokens=8)


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "liar.npz"
    header = npy(LOGITS).replace(b"(3, 5), }", b"(3, 2000000000000), }")[:200]
    path.write_bytes(packed(input_ids=npy(IDS), logits=header))
    with pytest.raises(ParityError, match=r"liar.npz: logits: is not a plain array"):
        load_recording(path, n_vocab=VOCAB, max_tokens=8)


@pytest.mark.parametrize("content", [b"", b"not a zip", npy(LOGITS)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ParityError, match=r"other.npz: is not a readable .npz file"):
        load_recording(path, n_vocab=VOCAB, max_tokens=8)


def test_an_absent_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_recording(tmp_path / "none.npz", n_vocab=VOCAB, max_tokens=8)


WHOLE = packed(input_ids=npy(IDS), logits=npy(LOGITS))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_never_get_through_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content)
    try:
        recording = load_recording(path, n_vocab=VOCAB, max_tokens=8)
    except ParityError:
        return
    assert recording.logits.shape == (recording.input_ids.size, VOCAB)
