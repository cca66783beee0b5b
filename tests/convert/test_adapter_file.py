"""Adapter files: written tensors are read again, and a tensor that does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_transplant import FFN, HIDDEN, make_base

from sb_edge.convert.adapter_file import IN, OUT, AdapterFile, read_adapter_file, write_adapter_file
from sb_edge.convert.checkpoint.base_model import fingerprint
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.transplant import transplant
from sb_edge.gguf.reader import TensorEntry
from sb_edge.util.errors import GgufError

LAYERS, WINDOW = (0, 2), 7
ADAPTED = "model.layers.1.mlp.up_proj"
WHOLE = "model.layers.0.attn.o_proj.weight"
NORM = "model.layers.0.attn.g_norm.weight"

Tensors = dict[str, np.ndarray]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def plain(base: Path, tmp_path: Path) -> Checkpoint:
    """The untrained student."""
    transplant(base, tmp_path / "plain", dtype="f32", gla_layers=LAYERS, window=WINDOW)
    return Checkpoint.open(tmp_path / "plain")


@pytest.fixture
def tensors(plain: Checkpoint) -> Tensors:
    """Possible results of training, in values that the types of the file represent exactly."""
    rng = np.random.default_rng(1)
    new = [name for name in plain.names if ".gk_proj." in name or ".g_norm." in name]
    found = {name: np.full_like(plain.read(name), 0.5) for name in new}
    whole = np.round(rng.uniform(-127, 127, (HIDDEN, HIDDEN))).astype(np.float32)
    whole[:, ::32] = 127  # so that the scale of every block is 1
    first = 127 * np.eye(4, HIDDEN, dtype=np.float32)
    last = rng.standard_normal((FFN, 4)).astype(np.float16).astype(np.float32)
    return found | {WHOLE: whole, ADAPTED + IN: first, ADAPTED + OUT: last}


def write(path: Path, base: Path, tensors: Tensors) -> Path:
    write_adapter_file(path, tensors, base=fingerprint(base), gla_layers=LAYERS, window=WINDOW)
    return path


def test_whole_tensors_replace_and_adapters_add(
    base: Path, plain: Checkpoint, tensors: Tensors, tmp_path: Path
) -> None:
    adapter = write(tmp_path / "adapter.gguf", base, tensors)
    report = transplant(base, tmp_path / "student", dtype="f32", trained=adapter)
    student = Checkpoint.open(tmp_path / "student")
    assert student.config == plain.config
    assert (report.n_new, report.n_trained) == (0, len(tensors) - 1)
    weight = f"{ADAPTED}.weight"
    for name in student.names:
        if name == weight:
            added = tensors[ADAPTED + OUT] @ tensors[ADAPTED + IN]
            np.testing.assert_allclose(student.read(name), plain.read(name) + added, rtol=1e-6)
        else:
            wanted = tensors.get(name, plain.read(name))
            np.testing.assert_allclose(student.read(name), wanted, rtol=5e-4, err_msg=name)
    np.testing.assert_array_equal(student.read(WHOLE), tensors[WHOLE])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({WHOLE: np.zeros((HIDDEN, 32))}, r"o_proj\.weight: a tensor has another shape"),
        ({ADAPTED + OUT: np.zeros((FFN, 5))}, r"up_proj\.adapter_out: a tensor has another shape"),
        ({"model.layers.9.attn.q_proj.weight": np.zeros((HIDDEN, HIDDEN))}, "does not have"),
        ({"model.norm" + IN: np.zeros((2, HIDDEN))}, "does not have"),
        ({f"model.norm{end}": np.zeros((2, HIDDEN)) for end in (IN, OUT)}, "does not have"),
        ({NORM: None}, r"g_norm\.weight: a tensor is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    base: Path, tensors: Tensors, tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    changed = {name: x for name, x in (tensors | changes).items() if x is not None}
    adapter = write(tmp_path / "adapter.gguf", base, changed)
    with pytest.raises(GgufError, match=message):
        transplant(base, tmp_path / "student", trained=adapter)
    assert not (tmp_path / "student").exists()


def test_some_of_the_layers(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter.gguf", base, tensors)
    transplant(base, tmp_path / "student", dtype="f32", trained=adapter, gla_layers=[2])
    transplant(base, tmp_path / "two", dtype="f32", gla_layers=[2], window=WINDOW)
    student, plain = Checkpoint.open(tmp_path / "student"), Checkpoint.open(tmp_path / "two")
    assert student.config == plain.config
    assert (student.read(WHOLE) == plain.read(WHOLE)).all()
    assert (student.read(NORM.replace(".0.", ".2.")) == 0.5).all()
    with pytest.raises(GgufError, match=r"gla_layers: this layer was not trained \(found 1, expected some"):
        transplant(base, tmp_path / "other", trained=adapter, gla_layers=[1, 2])


def test_a_tensor_of_integers_is_refused() -> None:
    tensor = TensorEntry(WHOLE, (2, 3), "I8", 6, 0, Path(__file__))
    with pytest.raises(GgufError, match=r"o_proj\.weight: a type that cannot be read as weights \(found I8"):
        AdapterFile(tensor.file, "", (0,), WINDOW, {WHOLE: tensor}).whole(WHOLE, (2, 3))


def test_another_base_is_refused(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter.gguf", base, tensors)
    other = make_base(tmp_path / "other", rms_norm_eps=1e-6)
    with pytest.raises(GgufError, match="belongs to another base"):
        transplant(other, tmp_path / "student", trained=adapter)


def test_another_gguf_is_refused(golden_gguf: Path) -> None:
    with pytest.raises(GgufError, match=r"adapter\.type: is not an adapter file"):
        read_adapter_file(golden_gguf)


def test_layers_out_of_order_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    write_adapter_file(tmp_path / "d.gguf", tensors, base="0" * 64, gla_layers=(2, 0), window=WINDOW)
    with pytest.raises(GgufError, match=r"adapter\.gla_layers: is not an ascending list"):
        read_adapter_file(tmp_path / "d.gguf")
