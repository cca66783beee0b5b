"""W8ASpike checkpoints: values in the GGUF, statistics, refusals, and parity with the release."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from sb_edge.arch.spike_plan import PROJECTIONS, SpikePlan
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.convert.convert import convert_checkpoint
from sb_edge.gguf.reader import read_header
from sb_edge.memory.forecast import forecast
from sb_edge.util.errors import CheckpointError, SpikeError

GOLDEN = Path(__file__).parents[1] / "data" / "w8aspike"
UP = "model.layers.1.mlp.up_proj.weight"
UP_SCALES = UP + "_quantizer.scales"


def raw_tensor(header, name: str) -> tuple[str, np.ndarray]:
    entry = next(tensor for tensor in header.tensors if tensor.name == name)
    return entry.type, np.fromfile(entry.file, np.uint8, entry.nbytes, offset=entry.offset)


def blocks_of(header, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales [n] float16 and codes [n, 32] int8 of a Q8_0 tensor."""
    kind, raw = raw_tensor(header, name)
    assert kind == "Q8_0"
    blocks = raw.reshape(-1, 34)
    return blocks[:, :2].copy().view(np.float16).reshape(-1), blocks[:, 2:].view(np.int8)


def released(tensors: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [groups, 128] and scales [groups, 1] as the release computes them, float32."""
    scales = tensors[name + "_quantizer.scales"].reshape(-1, 1)
    return np.round(tensors[name].reshape(-1, 128) / scales), scales


def golden_tensors() -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(GOLDEN)
    return {name: checkpoint.read(name) for name in checkpoint.names}


def golden_table():
    return account_for_tensors(Checkpoint.open(GOLDEN))[1]


def refusal(folder: Path, outtype: str = "auto") -> str:
    target = folder / "out.gguf"
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(folder, target, outtype=outtype)
    assert "\n" not in str(caught.value) and not target.exists()
    return str(caught.value)


def test_layout():
    layout, table = account_for_tensors(Checkpoint.open(GOLDEN))
    assert layout.quantized and layout.gate_rank == 0 and layout.attention_bias
    rounded = {spec.gguf_name for spec in table.values() if spec.scales}
    assert len(rounded) == 4 * 6 + 2  # not ffn_down; the gate in two layers
    assert "blk.0.ssm_f_b.weight" in rounded and "blk.0.ffn_down.weight" not in rounded
    scales = [name for name, spec in table.items() if not spec.gguf_name]
    assert len(scales) == len(rounded) + 4
    assert not table["model.layers.0.attn.gk_proj.weight"].keep_f32


def test_f32_is_the_release_bit_for_bit(tmp_path):
    report = convert_checkpoint(GOLDEN, tmp_path / "out.gguf", outtype="f32")
    header, tensors = read_header(tmp_path / "out.gguf"), golden_tensors()
    for name, spec in golden_table().items():
        if not spec.gguf_name:
            continue
        kind, raw = raw_tensor(header, spec.gguf_name)
        assert kind == "F32"
        expected = tensors[name]
        if spec.scales:
            codes, scales = released(tensors, name)
            expected = (codes * scales).reshape(expected.shape)
            assert not np.array_equal(expected, tensors[name])
        np.testing.assert_array_equal(raw.view(np.float32).reshape(expected.shape), expected)
    assert report.codes is not None and report.codes.codes == 475136
    assert report.codes.exact_codes == 0 and report.codes.scale_error == 0


@pytest.mark.parametrize("outtype", ["auto", "q8_0"])
def test_auto_stores_the_codes_themselves(tmp_path, outtype):
    report = convert_checkpoint(GOLDEN, tmp_path / "out.gguf", outtype=outtype)
    header, tensors = read_header(tmp_path / "out.gguf"), golden_tensors()
    largest = 0.0
    for name, spec in golden_table().items():
        if spec.scales:
            codes, scales = released(tensors, name)
            halves, stored = blocks_of(header, spec.gguf_name)
            np.testing.assert_array_equal(stored.reshape(-1, 128), codes)
            np.testing.assert_array_equal(halves, np.repeat(scales.reshape(-1), 4).astype(np.float16))
            largest = max(largest, np.abs(scales.astype(np.float16) / scales - 1).max())
        elif spec.gguf_name and not spec.keep_f32:  # ffn_down, embeddings, output: ordinary Q8_0
            expected = gguf.quants.quantize(tensors[name], gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(raw_tensor(header, spec.gguf_name)[1], expected.reshape(-1))
    assert report.outtype == "q8_0" and header.metadata["general.file_type"] == 7
    codes = report.codes
    assert codes is not None and codes.exact_codes == codes.codes == 475136
    assert codes.requantized_blocks == 0 and codes.beyond_int8 == {}
    assert codes.scale_error == pytest.approx(largest) and codes.scale_error <= 2**-11
    coded = {spec.gguf_name for spec in golden_table().values() if spec.scales}
    in_place = sum(tensor.nbytes for tensor in header.tensors if tensor.name in coded)
    assert in_place <= forecast(header, 256).weights <= header.nbytes + 4096


@pytest.mark.parametrize(("outtype", "bits"), [("f16", 11), ("bf16", 8)])
def test_sixteen_bits_round_the_products(tmp_path, outtype, bits):
    convert_checkpoint(GOLDEN, tmp_path / "out.gguf", outtype=outtype)
    header, tensors = read_header(tmp_path / "out.gguf"), golden_tensors()
    codes, scales = released(tensors, UP)
    _, raw = raw_tensor(header, "blk.1.ffn_up.weight")
    values = raw.view(np.float16).astype(np.float32)
    if outtype == "bf16":
        values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    exact = (codes * scales).reshape(-1)
    assert (np.abs(values - exact) <= np.abs(exact) * 2.0**-bits).all()


def test_keys(tmp_path):
    report = convert_checkpoint(GOLDEN, tmp_path / "out.gguf")
    metadata = read_header(tmp_path / "out.gguf").metadata
    assert metadata["spikingbrain.attention.decay_lora_rank"] == 0
    assert {key: value for key, value in metadata.items() if ".spike." in key} == {
        "spikingbrain.spike.projections": list(PROJECTIONS[:-1]),
        "spikingbrain.spike.k": 3.0,
        "spikingbrain.spike.query_k": 3.0,
        "spikingbrain.spike.kv_rounding": True,
    }
    assert SpikePlan.from_metadata(metadata) == report.spikes
    assert not [name for name in metadata if "scales" in name]


def test_spike_k_overrides(tmp_path):
    report = convert_checkpoint(
        GOLDEN, tmp_path / "out.gguf", spike_k=2.5, spike_projections=["attn_q", "ffn_down"]
    )
    assert report.spikes == SpikePlan(("attn_q", "ffn_down"), 2.5, query_k=2.5, kv_rounding=True)
    assert SpikePlan.from_metadata(read_header(tmp_path / "out.gguf").metadata) == report.spikes


def test_any_checkpoint_can_spike(data, tmp_path):
    report = convert_checkpoint(data / "gla_swa", tmp_path / "a.gguf", outtype="f32", spike_k=3)
    assert report.spikes == SpikePlan(PROJECTIONS, 3.0) and report.codes is None
    plain = convert_checkpoint(data / "gla_swa", tmp_path / "b.gguf", outtype="f32")
    assert plain.spikes is None
    assert not [key for key in read_header(tmp_path / "b.gguf").metadata if ".spike." in key]


@pytest.mark.parametrize("k", [0, -3, float("nan"), float("inf")])
def test_impossible_k(data, tmp_path, k):
    with pytest.raises(SpikeError, match="k: must be a positive number"):
        convert_checkpoint(data / "gla_swa", tmp_path / "out.gguf", spike_k=k)


def test_impossible_projections(data, tmp_path):
    with pytest.raises(SpikeError, match="no such projection"):
        convert_checkpoint(data / "gla_swa", tmp_path / "x.gguf", spike_k=3, spike_projections=["wq"])
    with pytest.raises(SpikeError, match="must be listed once"):
        convert_checkpoint(data / "gla_swa", tmp_path / "x.gguf", spike_k=3, spike_projections=["ssm_f"] * 2)
    with pytest.raises(SpikeError, match="give --spike-k too"):
        convert_checkpoint(data / "gla_swa", tmp_path / "x.gguf", spike_projections=["attn_q"])


def test_model_without_gates(golden_copy, tmp_path):
    tensors = golden_copy.tensors()
    golden_copy.save(
        {name: values for name, values in tensors.items() if "gk_proj" not in name and "g_norm" not in name}
    )
    golden_copy.edit_config(attn_layers=[0, 1, 2, 3])
    report = convert_checkpoint(golden_copy.folder, tmp_path / "out.gguf", spike_k=3)
    assert report.spikes is not None and "ssm_f" not in report.spikes.projections
    with pytest.raises(SpikeError, match=r"has no such projection \(found ssm_f, expected attn_q"):
        convert_checkpoint(golden_copy.folder, tmp_path / "x.gguf", spike_k=3, spike_projections=["ssm_f"])


@pytest.mark.parametrize("outtype", ["auto", "f32"])
def test_codes_beyond_int8(w8aspike_copy, tmp_path, outtype):
    """Row 5 has scales too small in its first block of 32 only: that block gets a larger scale."""
    tensors = w8aspike_copy.tensors()
    scale = tensors[UP_SCALES][5, 0, 0]
    tensors[UP][5, 3] = 254.4 * scale
    tensors[UP][5, 7] = -128 * scale
    tensors[UP][5, 40] = -127 * scale
    w8aspike_copy.save(tensors)
    report = convert_checkpoint(w8aspike_copy.folder, tmp_path / "out.gguf", outtype=outtype)
    codes, scales = released(tensors, UP)
    assert codes[5, 3] == 254 and codes[5, 7] == -128
    header = read_header(tmp_path / "out.gguf")
    assert report.codes is not None and report.codes.beyond_int8 == {"blk.1.ffn_up.weight": 2}
    if outtype == "f32":
        _, raw = raw_tensor(header, "blk.1.ffn_up.weight")
        np.testing.assert_array_equal(raw.view(np.float32), (codes * scales).reshape(-1))
        return
    assert report.codes.requantized_blocks == 1
    assert report.codes.exact_codes == report.codes.codes - 32
    halves, stored = blocks_of(header, "blk.1.ffn_up.weight")
    block = 5 * 4  # rows of 128 inputs, four blocks each
    others = np.arange(len(stored)) != block
    np.testing.assert_array_equal(stored[others], codes.reshape(-1, 32)[others])
    wanted = (codes * scales).reshape(-1, 32)[block]
    found = stored[block] * halves[block].astype(np.float32)
    assert stored[block].max() == 127 and halves[block] >= 254 * scale / 127
    assert (np.abs(found - wanted) <= 0.5001 * halves[block]).all()


def test_ties_go_to_even(w8aspike_copy, tmp_path):
    tensors = w8aspike_copy.tensors()
    tensors[UP_SCALES][0] = 0.0078125
    tensors[UP][0] = (np.arange(128) - 64 + 0.5) * np.float32(0.0078125)
    w8aspike_copy.save(tensors)
    convert_checkpoint(w8aspike_copy.folder, tmp_path / "out.gguf")
    _, stored = blocks_of(read_header(tmp_path / "out.gguf"), "blk.1.ffn_up.weight")
    assert stored.reshape(-1)[:4].tolist() == [-64, -62, -62, -60]


def test_sixteen_bit_checkpoint(data, tmp_path):
    """bfloat16 weights and float16 scales are divided in float32 all the same."""
    import ml_dtypes
    from safetensors.numpy import save_file

    tensors = golden_tensors()
    types = {name: np.float16 if name.endswith("scales") else ml_dtypes.bfloat16 for name in tensors}
    narrow = {name: values.astype(types[name]) for name, values in tensors.items()}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    save_file(narrow, tmp_path / "c" / "model.safetensors")
    report = convert_checkpoint(tmp_path / "c", tmp_path / "out.gguf")
    codes, _ = released({name: values.astype(np.float32) for name, values in narrow.items()}, UP)
    _, stored = blocks_of(read_header(tmp_path / "out.gguf"), "blk.1.ffn_up.weight")
    codes = codes.reshape(-1, 32)
    fits = np.abs(codes).max(axis=1) <= 127  # bfloat16 makes -128 of a few -127
    np.testing.assert_array_equal(stored[fits], codes[fits])
    assert report.outtype == "q8_0" and report.codes is not None and report.codes.scale_error == 0
    assert report.codes.beyond_int8["blk.1.ffn_up.weight"] == np.count_nonzero(np.abs(codes) > 127) > 0


def test_chunks_of_a_large_tensor(data, w8aspike_copy, tmp_path, monkeypatch):
    """Groups and scales stay together when a tensor is read in many chunks."""
    convert_checkpoint(w8aspike_copy.folder, tmp_path / "whole.gguf")
    monkeypatch.setattr("sb_edge.convert.convert._CHUNK_BYTES", 3000)
    convert_checkpoint(w8aspike_copy.folder, tmp_path / "pieces.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_split_and_dry_run(tmp_path):
    planned = convert_checkpoint(GOLDEN, tmp_path / "x.gguf", split_max_size=300_000, dry_run=True)
    assert planned.codes is None and planned.spikes is not None and list(tmp_path.iterdir()) == []
    written = convert_checkpoint(GOLDEN, tmp_path / "x.gguf", split_max_size=300_000)
    assert planned.files == written.files and len(written.files) > 1
    assert "spikingbrain.spike.k" in read_header(written.files[0]).metadata


@pytest.mark.parametrize("value", [0.0, -0.001, np.nan, np.inf])
@pytest.mark.parametrize("name", [UP_SCALES, "model.layers.0.mlp.down_proj.weight_quantizer.scales"])
def test_bad_scales(w8aspike_copy, name, value):
    def spoil(values):
        values[37] = value

    w8aspike_copy.edit_values(name, spoil)
    place = "[37, 0, 0]" if name == UP_SCALES else "[18, 1, 0]"
    assert f"{name}: a scale is not a positive number (found {np.float32(value)} at {place})" in refusal(
        w8aspike_copy.folder
    )


@pytest.mark.parametrize("value", [2.0**-25, 1e-30, 65520.0])
def test_scales_beyond_half_precision(w8aspike_copy, tmp_path, value):
    def spoil(values):
        values[37] = value

    w8aspike_copy.edit_values(UP_SCALES, spoil)
    line = refusal(w8aspike_copy.folder)
    assert (
        f"{UP_SCALES}: a scale is outside the range of float16" in line
        and "use --outtype bf16 or f32" in line
    )
    convert_checkpoint(w8aspike_copy.folder, tmp_path / "out.gguf", outtype="f32")


def test_scales_that_half_precision_carries_badly_are_reported(w8aspike_copy, tmp_path):
    def spoil(values):
        values[37] = 1e-6

    tensors = w8aspike_copy.tensors()
    tensors[UP][37] *= 1e-6 / tensors[UP_SCALES][37, 0, 0]
    w8aspike_copy.save(tensors)
    w8aspike_copy.edit_values(UP_SCALES, spoil)
    report = convert_checkpoint(w8aspike_copy.folder, tmp_path / "out.gguf")
    assert report.codes is not None and report.codes.scale_error == pytest.approx(0.0133, rel=0.01)


def test_unused_scales_may_be_of_any_size(w8aspike_copy, tmp_path):
    def spoil(values):
        values[37] = 1e-30

    w8aspike_copy.edit_values("model.layers.0.mlp.down_proj.weight_quantizer.scales", spoil)
    convert_checkpoint(w8aspike_copy.folder, tmp_path / "out.gguf")


def test_a_requantized_block_beyond_half_precision(w8aspike_copy):
    def spoil(values):
        values[300] = 3e9

    w8aspike_copy.edit_values(UP, spoil)
    assert f"{UP}: exceeds the range of Q8_0 (found 3000000000.0 at [2, 44])" in refusal(w8aspike_copy.folder)


@pytest.mark.parametrize("shape", [(256,), (256, 1), (256, 2, 1), (128, 1, 1)])
def test_scales_of_another_shape(w8aspike_copy, shape):
    w8aspike_copy.save(w8aspike_copy.tensors() | {UP_SCALES: np.ones(shape)})
    line = refusal(w8aspike_copy.folder)
    assert f"{UP_SCALES}: has the wrong shape (found {list(shape)}, expected [256, 1, 1])" in line


def test_some_projections_without_scales(w8aspike_copy):
    tensors = w8aspike_copy.tensors()
    del tensors[UP_SCALES]
    w8aspike_copy.save(tensors)
    line = refusal(w8aspike_copy.folder)
    assert f"{UP_SCALES}: is missing" in line and "29 of 30 scales" in line and "all or none" in line


def test_some_projections_with_scales(golden_copy):
    golden_copy.save(golden_copy.tensors() | {UP_SCALES: np.ones((256, 1, 1))})
    assert f"{UP_SCALES}: scales need merged gates" in refusal(golden_copy.folder)


def test_scales_of_something_else(w8aspike_copy):
    name = "lm_head.weight_quantizer.scales"
    w8aspike_copy.save(w8aspike_copy.tensors() | {name: np.ones((256, 1, 1))})
    assert f"{name}: is not a tensor of this model" in refusal(w8aspike_copy.folder)


def test_sizes_that_do_not_divide_into_groups(w8aspike_copy):
    w8aspike_copy.edit_config(intermediate_size=192)
    line = refusal(w8aspike_copy.folder)
    assert (
        "intermediate_size: is not a multiple of the group size of the scales (found 192, expected a multiple"
        in line
    )


def test_nan_weight(w8aspike_copy):
    def spoil(values):
        values[130] = np.nan

    w8aspike_copy.edit_values(UP, spoil)
    assert f"{UP}: holds NaN or infinity (found nan at [1, 2])" in refusal(w8aspike_copy.folder)


@pytest.mark.engine
def test_engine_reproduces_the_release(tmp_path):
    """The recording was chosen so that no count comes near a rounding boundary: agreement must be tight."""
    from sb_edge.evaluate.parity.agreement import against_recording

    convert_checkpoint(GOLDEN, tmp_path / "out.gguf", outtype="f32")
    report = against_recording(
        tmp_path / "out.gguf", GOLDEN / "golden.npz", pieces=(1, 7), type_k="f32", type_v="f32"
    )
    for run in report.runs:
        assert run.agreement.nmse <= 1e-4 and run.agreement.top1 >= 0.99


@pytest.mark.engine
def test_integer_codes_in_the_engine(tmp_path):
    """With scales rounded to half precision counts may flip, so only the distributions are compared."""
    from sb_edge.evaluate.parity.agreement import against_recording

    convert_checkpoint(GOLDEN, tmp_path / "out.gguf")
    report = against_recording(
        tmp_path / "out.gguf", GOLDEN / "golden.npz", type_k="f32", type_v="f32", tolerance=0.1
    )
    assert report.runs[0].agreement.nmse <= 0.1
