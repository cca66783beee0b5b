"""The engine against recorded logits and against the reference."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb_edge.arch.config import PRESETS
from sb_edge.arch.spike_plan import PROJECTIONS
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.convert.initialise import write_random_checkpoint
from sb_edge.evaluate.parity.agreement import against_checkpoint, against_recording
from sb_edge.evaluate.parity.engine_side import KvType
from sb_edge.util.errors import CheckpointError, ParityError
from sb_edge.util.tolerances import ENGINE_BY_KV_TYPE, SPIKES, SPIKES_F32

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "gla_swa"
SPIKING = ROOT / "tests" / "data" / "w8aspike"
PIECES = (1, 7, 33)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "gla_swa-f32.gguf"
    convert_checkpoint(GOLDEN, path, outtype="f32")
    return path


@pytest.fixture(scope="module")
def spiking_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity") / "w8aspike-f32.gguf"
    convert_checkpoint(SPIKING, path, outtype="f32")
    return path


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_engine_reproduces_the_recorded_logits(gguf: Path, kv_type: KvType) -> None:
    report = against_recording(gguf, GOLDEN / "golden.npz", pieces=PIECES, type_k=kv_type, type_v=kv_type)
    report.require_passed()
    assert [run.piece for run in report.runs] == [96, *PIECES]
    assert report.tolerance == ENGINE_BY_KV_TYPE[kv_type].nmse
    assert all(run.agreement.top1 == 1 for run in report.runs)


def test_keys_and_values_have_types_of_their_own(gguf: Path) -> None:
    for types in (("q8_0", "f32"), ("f32", "q8_0")):
        report = against_recording(gguf, GOLDEN / "golden.npz", type_k=types[0], type_v=types[1])
        assert (report.kv_types, report.passed) == (types, True)
        assert report.tolerance == ENGINE_BY_KV_TYPE["q8_0"].nmse
        assert report.worst.agreement.nmse > ENGINE_BY_KV_TYPE["f32"].nmse
    report = against_recording(gguf, GOLDEN / "golden.npz", type_k="f32")
    assert report.kv_types == ("f32", "f16")


def test_a_chunk_longer_than_the_prompt_is_refused(gguf: Path) -> None:
    with pytest.raises(ParityError, match="--pieces: is longer than the prompt"):
        against_recording(gguf, GOLDEN / "golden.npz", pieces=(1, 1000))


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_engine_agrees_with_the_reference_layer_by_layer(gguf: Path, kv_type: KvType) -> None:
    report = against_checkpoint(
        gguf, GOLDEN, pieces=PIECES, type_k=kv_type, type_v=kv_type, per_layer=True, dtype="float64"
    )
    report.require_passed()
    assert report.first_divergent_layer is None
    for run in report.runs:
        assert len(run.layers) == 5


def test_greedy_text_is_the_references(gguf: Path) -> None:
    report = against_checkpoint(gguf, GOLDEN, n_tokens=20, type_k="f32", type_v="f32", n_greedy=64)
    report.require_passed()
    assert report.greedy is not None
    assert len(report.greedy.engine) == 64
    assert report.greedy.first_difference is None


def test_engine_reproduces_the_recorded_logits_with_spikes(spiking_gguf: Path) -> None:
    report = against_recording(
        spiking_gguf, SPIKING / "golden.npz", pieces=(1, 7), type_k="f32", type_v="f32"
    )
    report.require_passed()
    assert report.tolerance == SPIKES_F32.nmse
    assert [run.agreement.top1 for run in report.runs] == [1, 1, 1]


def test_every_count_of_the_recorded_prompt_is_the_references(spiking_gguf: Path) -> None:
    report = against_checkpoint(
        spiking_gguf, SPIKING, recording=SPIKING / "golden.npz", type_k="f32", type_v="f32", dtype="float64"
    )
    report.require_passed()
    assert report.tokens == 24
    assert report.spikes is not None
    assert report.spikes.same_inputs.differing == report.spikes.end_to_end.differing == 0
    assert report.spikes.same_inputs.total == 24 * 128 * (4 * 6 + 2)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_counts_agree_on_any_prompt(spiking_gguf: Path, kv_type: KvType) -> None:
    report = against_checkpoint(spiking_gguf, SPIKING, type_k=kv_type, type_v=kv_type, pieces=(1,))
    report.require_passed()
    assert report.tolerance == SPIKES.nmse


def test_a_checkpoint_given_spikes_has_the_references_counts(tmp_path: Path) -> None:
    """A low-rank gate, every projection coded: only the first of the gate's pair is."""
    path = tmp_path / "spiking.gguf"
    convert_checkpoint(GOLDEN, path, outtype="f32", spike_k=2.5)
    report = against_checkpoint(path, GOLDEN, type_k="f32", type_v="f32")
    report.require_passed()
    assert report.spikes is not None
    assert {found.projection for found in report.spikes.same_inputs.projections} == set(PROJECTIONS)


def test_other_weights_change_counts(spiking_gguf: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((SPIKING / "config.json").read_bytes())
    weights = load_file(SPIKING / "model.safetensors")
    name = "model.layers.2.mlp_norm.weight"
    swing = np.linspace(0.5, 1.5, 128, dtype=np.float32)
    save_file({**weights, name: swing * weights[name]}, other / "model.safetensors")
    report = against_checkpoint(spiking_gguf, other, type_k="f32", type_v="f32", tolerance=9)
    assert report.spikes is not None
    assert report.spikes.same_inputs.worst is not None
    assert report.spikes.same_inputs.worst.layer == 2
    with pytest.raises(ParityError, match=r"ffn_gate in layer 2: .*set --counts-identical"):
        report.require_passed()
    against_checkpoint(
        spiking_gguf, other, type_k="f32", type_v="f32", tolerance=9, counts_identical=0.5
    ).require_passed()


def test_other_weights_fail_at_their_layer(gguf: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    weights = load_file(GOLDEN / "model.safetensors")
    name = "model.layers.2.attn.o_proj.weight"
    save_file({**weights, name: 1.5 * weights[name]}, other / "model.safetensors")
    report = against_checkpoint(gguf, other, type_k="f32", type_v="f32", per_layer=True)
    assert report.first_divergent_layer == "l_out-2"
    with pytest.raises(ParityError, match="l_out-2: the engine does not agree"):
        report.require_passed()


def test_another_vocabulary_is_refused(gguf: Path, tmp_path: Path) -> None:
    config = PRESETS["tiny"].model_copy(update={"vocab_size": 300})
    write_random_checkpoint(config, tmp_path / "other", attention_bias=True)
    with pytest.raises(ParityError, match=r"vocab_size: not the checkpoint .*found 300, expected 256"):
        against_checkpoint(gguf, tmp_path / "other")


def test_a_prompt_beyond_the_context_is_refused(gguf: Path) -> None:
    with pytest.raises(ParityError, match=r"longer than the model's context .*expected at most 2048"):
        against_checkpoint(gguf, GOLDEN, n_tokens=2049)


def test_an_absent_checkpoint_is_named(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        against_checkpoint(gguf, tmp_path / "nowhere")


def run_command(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sb_edge", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)


def test_the_documented_examples_run(tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line) for line in block[1].splitlines()]
    assert len(commands) >= 4
    for program, *arguments in commands:
        assert program == "sb-edge"
        result = run_command(arguments, tmp_path)
        assert result.returncode == 0, result.stderr
    assert '"identical": true' in (tmp_path / "parity.json").read_text(encoding="utf-8")


def test_over_the_tolerance_exits_with_1_and_still_reports(gguf: Path, tmp_path: Path) -> None:
    golden = str(GOLDEN / "golden.npz")
    result = run_command(
        ["parity", str(gguf), "--golden", golden, "--tolerance", "0", "--json", "-"], tmp_path
    )
    assert result.returncode == 1
    assert '"passed": false' in result.stdout
    assert "the engine does not agree with the reference" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_recording_of_another_model_is_refused(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, input_ids=np.zeros(2, np.int32), logits=np.zeros((2, 7), np.float32))
    with pytest.raises(ParityError, match=r"other.npz: logits: wrong shape"):
        against_recording(gguf, path)
