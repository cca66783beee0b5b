"""Whatever stands in a GGUF's header: loading it ends in a message, never in an abort of the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gguf_edit import rewrite

pytestmark = pytest.mark.engine

LOAD = """
import sys
from pathlib import Path
from sb_edge.util.errors import SbEdgeError
from sb_edge.runtime.session import Model, Session
for path in sys.argv[1:]:
    try:
        with Model(Path(path)) as model, Session(model, n_ctx=256) as session:
            session.evaluate([1, 2, 3])
        print("ran", path)
    except SbEdgeError as error:
        print("refused", error)
"""

KEYS = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.decay_lora_rank",
    "rope.dimension_count",
    "vocab_size",
)
VALUES = (0, 1, 3, 7, 2**31 - 1, 2**32 - 1)


def load(paths: list[Path]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    outcomes = done.stdout.splitlines()
    assert done.returncode == 0, f"{paths[len(outcomes)].name}: {done.stderr[-800:]}"
    return outcomes


def test_the_copy_itself_runs(golden_gguf: Path, tmp_path: Path) -> None:
    rewrite(golden_gguf, tmp_path / "copy.gguf", {})
    assert load([tmp_path / "copy.gguf"])[0].startswith("ran")


def test_wrong_numbers(golden_gguf: Path, tmp_path: Path) -> None:
    paths = []
    for key in KEYS:
        for value in VALUES:
            paths.append(tmp_path / f"{key}={value}.gguf")
            rewrite(golden_gguf, paths[-1], {f"spikingbrain.{key}": value})
        paths.append(tmp_path / f"{key} missing.gguf")
        rewrite(golden_gguf, paths[-1], {f"spikingbrain.{key}": None})
    outcomes = load(paths)
    assert len(outcomes) == len(paths)
    assert sum(outcome.startswith("refused") for outcome in outcomes) > len(paths) // 2


@pytest.mark.parametrize(
    "layers", [[], [True], [False] * 3, [True] * 400, [[True]], ["G", "S", "G", "S"], [7, 8, 9, 10]], ids=str
)
def test_wrong_layer_maps(golden_gguf: Path, tmp_path: Path, layers: list[object]) -> None:
    path = tmp_path / "model.gguf"
    try:
        rewrite(golden_gguf, path, {"spikingbrain.attention.recurrent_layers": layers})
    except ValueError:
        pytest.skip("the writer refuses such an array")
    assert len(load([path])) == 1
