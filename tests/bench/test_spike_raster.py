from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sb_edge.arch.coding import Coding
from sb_edge.bench.spikes.raster import MAX_STEPS, RecordedInput, make_raster, save_rasters, token_label
from sb_edge.util.errors import OutputError, SpikeError

COUNTS = np.array([[3, 0, -1, 0], [0, 0, 2, 9]], dtype=np.int32)


def test_trains_stand_token_beside_token() -> None:
    raster = make_raster(COUNTS, Coding.TERNARY)
    assert raster.channels.tolist() == [0, 1, 2, 3]
    assert raster.token_steps == (3, 9)
    assert raster.train.tolist() == [
        [1, 1, 1] + [0] * 9,
        [0] * 12,
        [-1, 0, 0] + [1, 1] + [0] * 7,
        [0, 0, 0] + [1] * 9,
    ]


@pytest.mark.parametrize(
    ("coding", "token_steps", "last"),
    [
        (Coding.BIDIRECTIONAL, (2, 4), [0, 0, 1, 0, 0, 1]),
        (Coding.TWOS_COMPLEMENT, (3, 5), [0] * 4 + [1, 0, 0, 1]),
    ],
)
def test_bits_come_most_significant_first(
    coding: Coding, token_steps: tuple[int, int], last: list[int]
) -> None:
    raster = make_raster(COUNTS, coding)
    assert raster.token_steps == token_steps
    assert raster.train[3].tolist() == last


def test_the_most_active_channels_are_shown_and_steps_are_those_of_all() -> None:
    counts = np.array([[1, -4, 2, 0], [9, -9, 9, 20]], dtype=np.int32)
    raster = make_raster(counts, Coding.TERNARY, n_channels=2)
    assert raster.channels.tolist() == [1, 3]
    assert raster.token_steps == (4, 20)
    burst = make_raster(np.array([[5000, 1]], dtype=np.int32), Coding.TERNARY)
    assert burst.token_steps == (5000,)
    assert burst.train.shape == (2, MAX_STEPS)


def test_a_silent_token_takes_a_step() -> None:
    assert make_raster(np.zeros((1, 3), dtype=np.int32), Coding.BITWISE).train.tolist() == [[0]] * 3


@pytest.mark.parametrize("coding", [Coding.BINARY, Coding.BITWISE])
def test_codings_without_signs(coding: Coding) -> None:
    with pytest.raises(
        SpikeError, match=rf"{coding.value}: carries no negative counts \(found 1 negative of 8\)"
    ):
        make_raster(COUNTS, coding)
    raster = make_raster(COUNTS, coding, magnitudes=True)
    assert raster.magnitudes
    assert raster.train.min() == 0
    assert not make_raster(np.abs(COUNTS), coding).magnitudes


def test_labels_of_tokens() -> None:
    assert token_label(b" the") == "·the"
    assert token_label(b"\n") == "⏎"
    assert token_label(b"extraordinarily") == "extraordi…"
    assert token_label("\u5317".encode()) == "U+5317"
    assert token_label(b"") == "(empty)"


@pytest.fixture
def recorded() -> RecordedInput:
    return RecordedInput("model.gguf", 5, "attn_q", 3.0, ("·$x_2$", "·house"), COUNTS)


def test_figures(recorded: RecordedInput, tmp_path: Path) -> None:
    files = [tmp_path / "raster.png", tmp_path / "raster.svg"]
    save_rasters(recorded, [make_raster(COUNTS, coding, magnitudes=True) for coding in Coding], files)
    svg = files[1].read_text(encoding="utf-8")
    for text in ("layer 5, k = 3", "bitwise-twos-complement", "·$x_2$", "this coding has no signs", "T=9"):
        assert text in svg
    with Image.open(files[0]) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x0B, 0x62, 0xB0), (0xC2, 0x50, 0x0A)):  # +1 and -1
        assert (pixels == colour).all(axis=1).sum() > 1000


def test_other_kinds_of_file(recorded: RecordedInput, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="unknown kind of plot"):
        save_rasters(recorded, [make_raster(COUNTS, Coding.TERNARY)], [tmp_path / "raster.gif"])
