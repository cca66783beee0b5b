"""Parity's own logic, on arrays made by hand and on the reference playing the engine's part."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from rich.console import Console

from sb_edge.cli import COMMANDS, cli
from sb_edge.cli.params import TokenCounts
from sb_edge.cli.parity import _render
from sb_edge.evaluate.parity.agreement import compare_layers
from sb_edge.evaluate.parity.engine_side import Rows, continue_greedily, feed
from sb_edge.evaluate.parity.parity_report import EngineRun, Greedy, ParityReport
from sb_edge.evaluate.parity.reference_side import Reference
from sb_edge.reference import require_torch
from sb_edge.reference.network import Cache, SpikingBrain
from sb_edge.util.errors import ParityError
from sb_edge.util.logits import Agreement, compare_logits
from sb_edge.util.tolerances import COUNTS_IDENTICAL, ENGINE_BY_KV_TYPE, GOLDEN_F32, PIECES_F32, TABLE

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "gla_swa"


class ReferenceSession:
    """The reference model behind an engine session's `evaluate`."""

    def __init__(self) -> None:
        self._model = SpikingBrain.from_checkpoint(GOLDEN)
        self._cache = Cache()

    @torch.inference_mode()
    def evaluate(self, tokens: Sequence[int], *, all_logits: bool = False) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._model(torch.tensor([list(tokens)]), self._cache)[0].numpy()
        return logits if all_logits else logits[-1]


def report(
    *nmse: float, layers: dict[str, float] | None = None, greedy: Greedy | None = None
) -> ParityReport:
    runs = [
        EngineRun(piece, Agreement(value, 0.0, 1.0, 3, value), layers or {})
        for piece, value in zip((96, 1, 7), nmse, strict=False)
    ]
    return ParityReport("m.gguf", "ckpt", 96, "f16", 1e-5, tuple(runs), layers is not None, greedy)


def test_the_worst_run_is_judged() -> None:
    found = report(1e-9, 1e-4, 1e-6)
    assert found.worst.piece == 1
    assert not found.passed
    with pytest.raises(
        ParityError, match=r"m.gguf: position 3: .*found NMSE 1.00e-04, expected at most 1e-05"
    ):
        found.require_passed()


def test_within_the_tolerance_passes() -> None:
    found = report(1e-9, 1e-5)
    assert found.passed
    found.require_passed()


def test_the_first_divergent_layer_is_named() -> None:
    found = report(1e-2, layers={"l_out-0": 1e-9, "l_out-1": 1e-3, "l_out-2": 1e-2})
    assert found.first_divergent_layer == "l_out-1"
    with pytest.raises(ParityError, match=r"m.gguf: l_out-1:"):
        found.require_passed()
    assert report(1e-9, layers={"l_out-0": 1e-9}).first_divergent_layer is None


def test_other_greedy_text_fails_within_the_tolerance() -> None:
    found = report(1e-9, greedy=Greedy([1, 2, 3], [1, 2, 4]))
    assert not found.passed
    with pytest.raises(ParityError, match="new token 2: the greedy texts differ"):
        found.require_passed()
    assert report(1e-9, greedy=Greedy([1, 2], [1, 2])).passed


def test_json_has_the_documented_fields() -> None:
    found = report(1e-9, 1e-6, layers={"l_out-0": 1e-9}, greedy=Greedy([1, 2], [1, 3]))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    described = text.split("## JSON")[1].split("## Recordings")[0]
    assert all(f"`{name}`" in described for name in document)
    assert document["pieces"] == [96, 1]
    assert document["nmse"] == 1e-6
    assert document["layers"] == [{"name": "l_out-0", "nmse": 1e-9}]
    assert document["greedy"]["first_difference"] == 1
    assert document["passed"] is False


@pytest.mark.parametrize(
    ("found", "phrases"),
    [
        (report(1e-9, 1e-6), ["whole prompt", "1.00e-09", "1.00e-06", "100.0%", "passed", "tolerance 1e-05"]),
        (report(1e-2, layers={"l_out-0": 1e-2}), ["first layer that diverges: l_out-0", "FAILED"]),
        (report(1e-9, greedy=Greedy([5], [5])), ["greedy text, 1 tokens: identical", "passed"]),
        (report(1e-9, greedy=Greedy([5, 6], [5, 7])), ["differs from token 1 on", "FAILED"]),
    ],
)
def test_what_a_person_reads(found: ParityReport, phrases: list[str]) -> None:
    out = io.StringIO()
    _render(found, Console(file=out, width=120))
    for phrase in phrases:
        assert phrase in out.getvalue()


@pytest.mark.parametrize("piece", [1, 7, 33, 96, 500])
def test_feeding_in_pieces_gives_every_position(piece: int) -> None:
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as golden:
        tokens, recorded = golden["input_ids"].tolist(), golden["logits"]
    found = feed(ReferenceSession(), tokens, piece)
    assert compare_logits(recorded, found).nmse <= GOLDEN_F32.nmse


def test_both_sides_generate_alike() -> None:
    prompt = [3, 1, 4, 1, 5]
    reference = Reference(GOLDEN, device="cpu", dtype="float32")
    text = reference.greedy(prompt, 12)
    assert len(text) == 12
    assert continue_greedily(ReferenceSession(), prompt, 12) == text


def test_layers_of_both_sides_are_matched_by_name() -> None:
    reference = Reference(GOLDEN, device="cpu", dtype="float64").rows([1, 2, 3], per_layer=True)
    other = Reference(GOLDEN, device="cpu", dtype="float32").rows([1, 2, 3], per_layer=True)
    found = compare_layers(reference, other)
    assert list(found) == [f"l_out-{layer}" for layer in range(4)] + ["result_norm"]
    assert max(found.values()) <= PIECES_F32.nmse
    lacking = {name: rows for name, rows in other.layers.items() if name != "l_out-2"}
    with pytest.raises(ParityError, match="l_out-2: the engine did not report"):
        compare_layers(reference, Rows(other.logits, lacking))


def test_bfloat16_reference_gives_numpy() -> None:
    rows = Reference(GOLDEN, device="cpu", dtype="bfloat16").rows([1, 2], per_layer=True)
    assert rows.logits.dtype == rows.layers["l_out-0"].dtype == np.float32


def test_missing_pytorch_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ParityError, match=r"needs PyTorch; pip install 'sb-edge\[reference\]'"):
        require_torch()


def test_recorded_logits_need_no_pytorch() -> None:
    modules = "sb_edge.evaluate.parity.agreement, sb_edge.evaluate.parity.recording"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.gguf"], "Name a CHECKPOINT or --golden"),
        (["m.gguf", "ckpt", "--golden", "g.npz", "--prompt", "a"], "either --prompt or that of --golden"),
        (["m.gguf", "--golden", "g.npz", "--greedy", "4"], "need a CHECKPOINT"),
        (["m.gguf", "--golden", "g.npz", "--per-layer"], "need a CHECKPOINT"),
        (["m.gguf", "--golden", "g.npz", "--prompt", ""], "need a CHECKPOINT"),
        (["m.gguf", "--golden", "g.npz", "--counts-identical", "0.9"], "need a CHECKPOINT"),
        (["m.gguf", "ckpt", "--counts-identical", "99"], "0<=x<=1"),
        (["m.gguf", "ckpt", "--pieces", "1,x"], "'x' is not a number of tokens"),
        (["m.gguf", "ckpt", "--pieces", "4,0"], "'0' is not in the range 1 to"),
        (["m.gguf", "ckpt", "--cache-type-k", "q4_0"], "q4_0"),
        (["m.gguf", "ckpt", "--tolerance", "-1"], "x>=0"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["parity", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_pieces_are_a_list_of_numbers() -> None:
    assert TokenCounts(1).convert("1, 7,33", None, None) == (1, 7, 33)
    with pytest.raises(click.BadParameter):
        TokenCounts(1).convert("", None, None)


def test_short_help_is_the_groups() -> None:
    command = cli.get_command(click.Context(cli), "parity")
    assert command is not None
    assert command.get_short_help_str(limit=200) == COMMANDS["parity"]


def test_the_documented_tolerances_are_those_in_use() -> None:
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    table = text.split("## Tolerances")[1].split("## JSON")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    documented = [(name, float(ceiling), why) for name, ceiling, why in rows[1:]]
    assert documented == [(row.name, row.nmse, row.why) for row in TABLE]


def test_every_kv_type_on_offer_has_a_tolerance() -> None:
    command = cli.get_command(click.Context(cli), "parity")
    assert command is not None
    options = [parameter for parameter in command.params if parameter.name in ("type_k", "type_v")]
    assert len(options) == 2
    for option in options:
        assert isinstance(option.type, click.Choice)
        assert set(option.type.choices) == set(ENGINE_BY_KV_TYPE) == set(COUNTS_IDENTICAL)
