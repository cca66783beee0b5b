"""Importance matrices and tied embeddings in `quantize`."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from sb_edge.gguf.reader import read_header
from sb_edge.quant.quantize import quantize
from sb_edge.util.errors import GgufError

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def sums(tiny: Path) -> dict[str, np.ndarray]:
    """Sums of squares for every matrix of the model."""
    random = np.random.default_rng(3)
    return {
        tensor.name: random.lognormal(0, 3, tensor.shape[1]) * 4096
        for tensor in read_header(tiny).tensors
        if len(tensor.shape) == 2
    }


def write(path: Path, entries: dict[str, np.ndarray]) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 8)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor, values in entries.items():
        writer.add_tensor(f"{tensor}.in_sum2", values.astype(np.float32)[None, :])
        writer.add_tensor(f"{tensor}.counts", np.array([[4096.0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_right_one_is_used(tiny: Path, sums: dict[str, np.ndarray], tmp_path: Path) -> None:
    quantize(tiny, tmp_path / "without.gguf", "Q4_0")
    quantize(tiny, tmp_path / "with.gguf", "Q4_0", imatrix=write(tmp_path / "right", sums))
    assert (tmp_path / "with.gguf").read_bytes() != (tmp_path / "without.gguf").read_bytes()


def test_one_of_another_model_is_refused(tiny: Path, sums: dict[str, np.ndarray], tmp_path: Path) -> None:
    wrong = {
        "belongs to another model": {f"blk.9{n}.attn_qkv.weight": v for n, v in enumerate(sums.values())},
        "does not have the width": {name: np.resize(v, v.size * 2) for name, v in sums.items()},
        "holds no importance": {name: np.zeros_like(v) for name, v in sums.items()},
        "is not an importance matrix": {},
    }
    for message, entries in wrong.items():
        path = write(tmp_path / "wrong", entries)
        with pytest.raises(GgufError, match=message):
            quantize(tiny, tmp_path / "out.gguf", "Q4_0", imatrix=path)
        assert not (tmp_path / "out.gguf").exists()


def test_half_of_one_is_said(
    tiny: Path, sums: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {name: sums[name] for name in sorted(sums)[::2]}
    quantize(tiny, tmp_path / "out.gguf", "Q4_0", imatrix=write(tmp_path / "half", half))
    assert "has no entry for" in capsys.readouterr().err


def test_tied_embeddings_are_the_output(tiny_llama: Path, tmp_path: Path) -> None:
    def types(path: Path) -> dict[str, str]:
        return {tensor.name: tensor.type for tensor in read_header(path).tensors}

    assert "output.weight" not in types(tiny_llama)
    quantize(tiny_llama, tmp_path / "out.gguf", "Q4_0", leave_output_tensor=True)
    assert types(tmp_path / "out.gguf")["token_embd.weight"] == types(tiny_llama)["token_embd.weight"]
    quantize(tiny_llama, tmp_path / "plain.gguf", "Q4_0")
    assert types(tmp_path / "plain.gguf")["token_embd.weight"] != types(tiny_llama)["token_embd.weight"]
