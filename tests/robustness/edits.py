"""Random prefix edits through the server: its prompt cache changes no answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from children import Figures

from sb_edge.arch.layer_map import vocabulary_size
from sb_edge.gguf.reader import read_header
from sb_edge.models.registry import resolve_gguf

sys.path.append(str(Path(__file__).parents[1] / "server"))

from prefix_edits import SETTINGS, differences

LENGTHS = (1, 2, 5, 30, 80, 517)
"""Sizes of new parts, tokens."""
FLOAT32 = ("-ctk", "f32", "-ctv", "f32")


def check(tiny: Path, n_edits: int, seed: int) -> Iterator[Figures]:
    """The float32 model may not differ, the default one only where rounding decides; both are listed."""
    for name, model, options in (("tiny", tiny, FLOAT32), ("default", resolve_gguf("default"), ())):
        n_vocab = vocabulary_size(read_header(model))
        for setting, more in SETTINGS.items():
            figures = Figures(f"prefix edits, {name}, {setting}")
            found = differences(model, ["-c", "4096", *options, *more], n_vocab, n_edits, LENGTHS, seed)
            figures.outcomes["equal"] = n_edits - len(found)
            for each in found:
                is_rounding = model != tiny and each.is_rounding
                if is_rounding:
                    print(f"- {figures.name}: within rounding {each}", flush=True)
                outcome = "within rounding" if is_rounding else "differ"
                figures.count(figures.name, outcome, bad=not is_rounding, detail=str(each))
            print(figures.row(), flush=True)
            yield figures
