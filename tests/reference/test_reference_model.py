"""The PyTorch model: against recorded logits, in chunks, its window's edge, its variants."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from sb_edge.arch.config import PRESETS, SpikingBrainConfig
from sb_edge.arch.tensors import expected_tensors
from sb_edge.convert.checkpoint.shard_writer import CheckpointWriter
from sb_edge.reference import fused_window as fused
from sb_edge.reference import layers
from sb_edge.reference.device import pick_device
from sb_edge.reference.greedy import greedy
from sb_edge.reference.layers import rotate, windowed_attention
from sb_edge.reference.network import Cache, SpikingBrain
from sb_edge.util.errors import CheckpointError
from sb_edge.util.logits import compare_logits, nmse
from sb_edge.util.tolerances import CHUNK_F64, GOLDEN_BF16, GOLDEN_F32, PIECES_F32, PIECES_F64

GOLDEN = Path(__file__).parents[1] / "data" / "gla_swa"


def golden() -> tuple[Tensor, np.ndarray]:
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["input_ids"].astype(np.int64))[None], arrays["logits"]


def write_checkpoint(
    folder: Path,
    config: SpikingBrainConfig,
    *,
    attention_bias: bool = True,
    dtype: np.dtype | type = np.float32,
    overrides: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """A checkpoint of random values; `overrides` replace some of them. Returns the tensors."""
    rng = np.random.default_rng(3)
    table = expected_tensors(config, attention_bias=attention_bias)
    arrays = {name: rng.normal(0, 0.2, spec.shape).astype(dtype) for name, spec in table.items()}
    arrays.update(overrides or {})
    with CheckpointWriter(folder, config, {name: (x.shape, x.dtype) for name, x in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return arrays


@torch.inference_mode()
def logits(model: SpikingBrain, tokens: Tensor) -> np.ndarray:
    return model(tokens)[0].double().numpy()


@torch.inference_mode()
def logits_in_pieces(model: SpikingBrain, tokens: Tensor, piece: int) -> np.ndarray:
    cache = Cache()
    parts = [model(part, cache) for part in tokens.split(piece, dim=1)]
    assert cache.position == tokens.shape[1]
    return torch.cat(parts, dim=1)[0].double().numpy()


@pytest.mark.parametrize("attention", ["naive", "chunk"])
@pytest.mark.parametrize(
    ("dtype", "ceiling"),
    [
        (torch.float32, GOLDEN_F32.nmse),
        (torch.float64, GOLDEN_F32.nmse),
        (torch.bfloat16, GOLDEN_BF16.nmse),
    ],
)
def test_model_reproduces_the_recorded_logits(attention: str, dtype: torch.dtype, ceiling: float) -> None:
    tokens, recorded = golden()
    model = SpikingBrain.from_checkpoint(GOLDEN, dtype=dtype, attention=attention)
    found = compare_logits(recorded, logits(model, tokens))
    assert found.nmse <= ceiling
    if dtype != torch.bfloat16:
        assert found.top1 == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("attention", ["naive", "chunk"])
def test_model_reproduces_the_recorded_logits_on_a_gpu(attention: str) -> None:
    tokens, recorded = golden()
    device = pick_device("cuda")
    model = SpikingBrain.from_checkpoint(GOLDEN, device=device, attention=attention)
    with torch.inference_mode():
        found = model(tokens.to(device))[0].cpu().numpy()
    assert nmse(recorded, found) <= GOLDEN_F32.nmse
    assert greedy(model, [1, 2, 3], 4) == greedy(SpikingBrain.from_checkpoint(GOLDEN), [1, 2, 3], 4)


@pytest.mark.parametrize("piece", [1, 7, 33])
@pytest.mark.parametrize(
    ("dtype", "ceiling"), [(torch.float32, PIECES_F32.nmse), (torch.float64, PIECES_F64.nmse)]
)
def test_pieces_give_what_the_whole_gives(piece: int, dtype: torch.dtype, ceiling: float) -> None:
    tokens, _ = golden()
    model = SpikingBrain.from_checkpoint(GOLDEN, dtype=dtype)
    assert nmse(logits(model, tokens), logits_in_pieces(model, tokens, piece)) <= ceiling


def test_sequences_of_a_batch_do_not_mix() -> None:
    tokens, _ = golden()
    pair = tokens[0].unfold(0, 48, 48)
    model = SpikingBrain.from_checkpoint(GOLDEN, dtype=torch.float64)
    with torch.inference_mode():
        both = model(pair).numpy()
    for row in range(2):
        assert nmse(logits(model, pair[row : row + 1]), both[row]) <= PIECES_F64.nmse


def test_layer_outputs_have_the_engines_names() -> None:
    tokens, _ = golden()
    seen: dict[str, Tensor] = {}
    model = SpikingBrain.from_checkpoint(GOLDEN)
    with torch.inference_mode():
        model(tokens, on_tensor=seen.__setitem__)
    assert list(seen) == ["l_out-0", "l_out-1", "l_out-2", "l_out-3", "result_norm"]
    assert {tuple(x.shape) for x in seen.values()} == {(1, 96, 128)}


def test_greedy_with_the_cache_is_greedy_without() -> None:
    model = SpikingBrain.from_checkpoint(GOLDEN)
    tokens = golden()[0][0, :20].tolist()
    found = greedy(model, tokens, 24)
    for token in found:
        assert int(logits(model, torch.tensor([tokens]))[-1].argmax()) == token
        tokens.append(token)


def test_window_is_exactly_w_keys_own_included() -> None:
    draw = torch.Generator().manual_seed(0)
    window, last = 16, 39
    q, k, v = (torch.randn(1, 40, heads, 8, generator=draw) for heads in (4, 2, 2))
    before = windowed_attention(q, k, v, window)[0, last]
    for key, sees in ((last - window, False), (last - window + 1, True), (last, True)):
        other = v.clone()
        other[0, key] += 1
        assert torch.equal(windowed_attention(q, k, other, window)[0, last], before) is not sees


@pytest.mark.parametrize("past", [0, 5, 99])
def test_windowed_attention_over_several_query_blocks(past: int) -> None:
    """Against one dense softmax per head, repeated keys and a full mask."""
    draw = torch.Generator().manual_seed(1)
    length, window = layers.QUERY_BLOCK + 77, 100
    q = torch.randn(2, length, 6, 4, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, past + length, 3, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    age = torch.arange(past, past + length)[:, None] - torch.arange(past + length)
    mask = (age >= 0) & (age < window)
    heads = (q, k.repeat_interleave(2, dim=2), v.repeat_interleave(2, dim=2))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in heads), attn_mask=mask
    ).transpose(1, 2)
    found = windowed_attention(q, k, v, window)
    assert nmse(expected.reshape(1, -1).numpy(), found.reshape(1, -1).numpy()) <= CHUNK_F64.nmse


@pytest.mark.parametrize(
    ("length", "past", "window"), [(1, 0, 4), (1, 3, 100), (1, 99, 16), (7, 5, 100), (9, 0, 4)]
)
def test_the_fused_form_of_windowed_attention_is_the_same(length: int, past: int, window: int) -> None:
    draw = torch.Generator().manual_seed(2)
    q = torch.randn(2, length, 6, 8, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, past + length, 3, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    expected, found = (form(q, k, v, window) for form in (windowed_attention, fused.windowed_attention))
    assert found.shape == expected.shape
    assert nmse(expected.reshape(1, -1).numpy(), found.reshape(1, -1).numpy()) <= CHUNK_F64.nmse


def test_cache_keeps_one_key_less_than_the_window() -> None:
    tokens, _ = golden()
    cache = Cache()
    with torch.inference_mode():
        SpikingBrain.from_checkpoint(GOLDEN)(tokens, cache)
    assert cache.layers[1][0].shape == (1, 15, 2, 32)
    assert cache.layers[0][0].shape == (1, 2, 32, 32)


def test_rotation_turns_channel_i_with_channel_i_plus_half() -> None:
    x = torch.tensor([1.0, 10.0, 2.0, 20.0], dtype=torch.float64).reshape(1, 1, 1, 4)
    found = rotate(x, position=3, theta=100.0).flatten().numpy()
    slow = 3 / np.sqrt(100.0)
    expected = [
        np.cos(3) - 2 * np.sin(3),
        10 * np.cos(slow) - 20 * np.sin(slow),
        2 * np.cos(3) + np.sin(3),
        20 * np.cos(slow) + 10 * np.sin(slow),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_tied_output_is_the_embedding(tmp_path: Path) -> None:
    tied = PRESETS["tiny"].model_copy(update={"tie_word_embeddings": True})
    arrays = write_checkpoint(tmp_path / "tied", tied)
    untied = tied.model_copy(update={"tie_word_embeddings": False})
    head = arrays["model.embeddings.weight"]
    write_checkpoint(tmp_path / "untied", untied, overrides={**arrays, "lm_head.weight": head})
    tokens = torch.arange(20)[None]
    found = [logits(SpikingBrain.from_checkpoint(tmp_path / name), tokens) for name in ("tied", "untied")]
    np.testing.assert_array_equal(*found)


def test_no_bias_is_a_bias_of_zeros(tmp_path: Path) -> None:
    config = PRESETS["tiny"]
    arrays = write_checkpoint(tmp_path / "without", config, attention_bias=False)
    table = expected_tensors(config)
    zeros = {name: np.zeros(spec.shape, np.float32) for name, spec in table.items() if name not in arrays}
    assert len(zeros) == 3 * config.num_hidden_layers
    write_checkpoint(tmp_path / "zeros", config, overrides={**arrays, **zeros})
    tokens = torch.arange(20)[None]
    found = [logits(SpikingBrain.from_checkpoint(tmp_path / name), tokens) for name in ("without", "zeros")]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_checkpoints_load_exactly(tmp_path: Path, dtype: type) -> None:
    arrays = write_checkpoint(tmp_path / "half", PRESETS["tiny"], dtype=dtype)
    loaded = SpikingBrain.from_checkpoint(tmp_path / "half").state_dict()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array.astype(np.float32))


def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    write_checkpoint(tmp_path / "bad", PRESETS["tiny"], overrides={name: np.zeros((3, 128), np.float32)})
    with pytest.raises(CheckpointError, match=name):
        SpikingBrain.from_checkpoint(tmp_path / "bad")
