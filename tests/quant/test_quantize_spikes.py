"""Spike keys through `sb-edge quantize`: kept, set and removed."""

from __future__ import annotations

import resource
import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from support import SB_EDGE, sb_edge

from sb_edge.arch.model_spikes import check_plan, released_plan
from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.arch.spike_rewrite import with_spike_plan
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.gguf.reader import read_header
from sb_edge.gguf.rewrite import with_metadata
from sb_edge.quant.quantize import quantize
from sb_edge.util.errors import GgufError, SpikeError

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def w8aspike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("w8aspike") / "auto.gguf"
    convert_checkpoint(Path(__file__).parents[1] / "data" / "w8aspike", path)
    return path


def plan_of(path: Path) -> SpikePlan | None:
    return check_plan(read_header(path))


def content(path: Path) -> tuple[dict[str, object], dict[str, bytes]]:
    """Types and values of all keys but the spikes', and every tensor's bytes."""
    reader = gguf.GGUFReader(path)
    keys = {
        name: ([kind.name for kind in field.types], field.contents())
        for name, field in reader.fields.items()
        if ".spike." not in name and not name.startswith("GGUF.")
    }
    return keys, {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}


def test_the_tool_keeps_the_keys(w8aspike: Path, golden_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    quantize(w8aspike, target, "Q4_0", allow_requantize=True, n_threads=1)
    released = released_plan(tensor.name for tensor in read_header(w8aspike).tensors)
    assert plan_of(target) == plan_of(w8aspike) == released
    tuned = SpikePlan(("attn_q", "ssm_f"), 3, ((2.0, 2.5), (3.5, 0.0), (2.0, 2.5), (3.5, 0.0)))
    with_spike_plan(golden_gguf, tmp_path / "tuned.gguf", tuned)
    quantize(tmp_path / "tuned.gguf", target, "Q8_0", n_threads=1)
    assert plan_of(target) == tuned


def test_keys_are_set_and_the_rest_is_what_the_tool_wrote(golden_gguf: Path, tmp_path: Path) -> None:
    quantize(golden_gguf, tmp_path / "plain.gguf", "Q4_0", n_threads=1)
    quantize(golden_gguf, tmp_path / "s.gguf", "Q4_0", n_threads=1, spike_k=2.5, spike_projections=["ffn_up"])
    assert plan_of(tmp_path / "plain.gguf") is None
    assert plan_of(tmp_path / "s.gguf") == SpikePlan(("ffn_up",), 2.5)
    assert content(tmp_path / "plain.gguf") == content(tmp_path / "s.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.gguf", "s.gguf"]


def test_k_is_changed_and_removed(w8aspike: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    quantize(w8aspike, target, "Q8_0", allow_requantize=True, n_threads=1, spike_k=2)
    assert plan_of(target) == replace(plan_of(w8aspike), k=2, query_k=2)
    quantize(w8aspike, target, "COPY", n_threads=1, spike_k=0)
    assert plan_of(target) is None
    assert not [key for key in read_header(target).metadata if ".spike." in key]


def test_what_cannot_be_is_refused_before_any_work(golden_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(SpikeError, match="positive number"):
        quantize(golden_gguf, target, "Q4_0", spike_k=-1)
    with pytest.raises(SpikeError, match="no such projection"):
        quantize(golden_gguf, target, "Q4_0", spike_k=3, spike_projections=["wq"])
    bad = tmp_path / "bad.gguf"
    with_metadata(golden_gguf, bad, values={"spikingbrain.spike.k": 0.0})
    with pytest.raises(GgufError, match=r"spikingbrain\.spike\.projections: is missing"):
        quantize(bad, target, "Q4_0")
    assert not target.exists()


def test_a_full_device_while_keys_are_written(golden_gguf: Path, tmp_path: Path) -> None:
    """The limit lets llama-quantize's file through, but not the copy with more keys."""
    plain, target = tmp_path / "plain.gguf", tmp_path / "out.gguf"
    quantize(golden_gguf, plain, "Q4_0", n_threads=1)
    target.write_bytes(b"earlier")
    limit = plain.stat().st_size + 64
    done = subprocess.run(
        [*SB_EDGE, "spikes", "set", str(plain), str(target), "3"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"error: {target}: cannot be written: File too large"
    assert target.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "plain.gguf"]


def test_command_line(golden_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    done = sb_edge("spikes", "set", golden_gguf, target, "3", "--spike-projections", "attn_q,ssm_f")
    assert done.returncode == 0, done.stderr
    assert plan_of(target) == SpikePlan(("attn_q", "ssm_f"), 3)
    for arguments, message in (
        (["x"], "'x' is not a positive number or 0"),
        (["3", "--spike-projections", "attn_q,attn_q"], "'attn_q' is named twice"),
    ):
        done = sb_edge("spikes", "set", golden_gguf, target, *arguments)
        assert done.returncode == 2 and message in done.stderr
