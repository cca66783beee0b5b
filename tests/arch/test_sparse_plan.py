"""A sparse layout in a GGUF: written, checked, and invisible to code for dense models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from sb_edge.arch.sparse_plan import (
    MAX_DENSITY_KEY,
    check_sparse,
    columns_name,
    dense_tensors,
    row_name,
    sparse_values,
    zones_name,
)
from sb_edge.cli.inspect import describe
from sb_edge.gguf.reader import GgufHeader, TensorEntry, read_header
from sb_edge.gguf.rewrite import with_metadata, with_tensors
from sb_edge.gguf.values import tensor_bytes, tensor_values
from sb_edge.gguf.writer import PlannedTensor
from sb_edge.memory.check import Room, require_memory_for_weights
from sb_edge.memory.forecast import forecast_weights
from sb_edge.memory.traffic import weight_bytes as decoded_bytes
from sb_edge.quant.quantize import quantize as quantize_file
from sb_edge.util.errors import GgufError, OutOfMemoryForecast

pytestmark = pytest.mark.engine
SITES = ((1, "ffn_down"), (0, "attn_q"))


def add_layout(source: Path, target: Path, sites: tuple[tuple[int, str], ...] = SITES) -> Path:
    """Columns in Q8_0 and zones 0, 1, 2, ... of some projections."""
    rows = {tensor.name: tensor for tensor in read_header(source).tensors}
    planned = []
    for site in sites:
        m, n = rows[row_name(*site)].shape
        planned.append(PlannedTensor(columns_name(*site), row_name(*site), (n, m), GGMLQuantizationType.Q8_0))
        planned.append(PlannedTensor(zones_name(*site), "", (n,), GGMLQuantizationType.F32))

    def data(tensor: PlannedTensor) -> list[np.ndarray]:
        if not tensor.source:
            return [np.arange(tensor.shape[0], dtype=np.float32).view(np.uint8)]
        columns = np.ascontiguousarray(tensor_values(rows[tensor.source]).T)
        return [quantize(columns, GGMLQuantizationType.Q8_0).reshape(-1)]

    with_tensors(source, target, planned, data, values={MAX_DENSITY_KEY: 0.75})
    return target


@pytest.fixture(scope="module")
def sparse(golden_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_layout(golden_gguf, tmp_path_factory.mktemp("sparse") / "sparse.gguf")


def test_tensors_are_added_and_all_else_stays(golden_gguf: Path, sparse: Path) -> None:
    before, after = read_header(golden_gguf), read_header(sparse)
    assert list(after.metadata) == [*before.metadata, MAX_DENSITY_KEY]
    assert after.metadata[MAX_DENSITY_KEY] == 0.75
    assert [tensor.name for tensor in dense_tensors(after)] == [tensor.name for tensor in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=False):
        assert np.array_equal(tensor_bytes(old), tensor_bytes(new))
    plan = check_sparse(after)
    assert plan is not None and plan.max_density == 0.75
    assert [(each.layer, each.name) for each in plan.projections] == sorted(SITES)
    rows = {tensor.name: tensor for tensor in before.tensors}
    for each in plan.projections:
        weight = tensor_values(rows[row_name(each.layer, each.name)])
        assert np.abs(tensor_values(each.columns).T - weight).max() <= np.abs(weight).max() / 254 * 1.01
        assert each.read_zones().tolist() == list(range(weight.shape[1]))
    assert check_sparse(before) is None


def without(name: str) -> Callable[[GgufHeader], GgufHeader]:
    return lambda header: replace(header, tensors=[each for each in header.tensors if each.name != name])


def changed(tensor_name: str, **values: object) -> Callable[[GgufHeader], GgufHeader]:
    def change(tensor: TensorEntry) -> TensorEntry:
        return replace(tensor, **values) if tensor.name == tensor_name else tensor  # type: ignore[arg-type]

    return lambda header: replace(header, tensors=[change(each) for each in header.tensors])


def keyed(key: str, value: object) -> Callable[[GgufHeader], GgufHeader]:
    return lambda header: replace(header, metadata={**header.metadata, key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(columns_name(0, "attn_q")), r"attn_q\.columns\.weight: is missing"),
        (without(zones_name(1, "ffn_down")), r"ffn_down\.zones\.weight: is missing"),
        (without(row_name(1, "ffn_down")), r"ffn_down\.weight: is missing"),
        (changed(columns_name(0, "attn_q"), shape=(128, 64)), "does not have the shape"),
        (changed(zones_name(0, "attn_q"), shape=(64,)), "does not have the shape"),
        (changed(columns_name(0, "attn_q"), type="Q4_K"), "has the wrong type"),
        (changed(zones_name(0, "attn_q"), type="F16"), "has the wrong type"),
        (changed(zones_name(0, "attn_q"), name="blk.0.ssm_f_a.zones.weight"), "this projection cannot"),
        (keyed(MAX_DENSITY_KEY, 0.0), "is not a share"),
        (keyed(MAX_DENSITY_KEY, 1.5), "is not a share"),
        (keyed(MAX_DENSITY_KEY, float("nan")), "is not a share"),
        (keyed("spikingbrain.sparse.override", 0.0), "is not a known key"),
        (lambda header: replace(header, arch="llama"), "belongs to another architecture"),
        (lambda header: replace(header, tensors=dense_tensors(header)), "has no sparse projection"),
    ],
)
def test_half_a_layout_is_refused(
    sparse: Path, damage: Callable[[GgufHeader], GgufHeader], message: str
) -> None:
    with pytest.raises(GgufError, match=message):
        check_sparse(damage(read_header(sparse)))


def test_a_missing_share_is_refused(sparse: Path, tmp_path: Path) -> None:
    with_metadata(sparse, tmp_path / "no.gguf", values={}, removed=[MAX_DENSITY_KEY])
    with pytest.raises(GgufError, match=r"sparse\.max_density: is missing"):
        check_sparse(read_header(tmp_path / "no.gguf"))


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
def test_zones_that_are_none_are_refused(golden_gguf: Path, tmp_path: Path, value: float) -> None:
    plan = check_sparse(read_header(add_layout(golden_gguf, tmp_path / "bad.gguf")))
    assert plan is not None
    projection = plan.projections[0]
    tensor_bytes(projection.zones, writable=True).view(np.float32)[0, 3] = value
    with pytest.raises(GgufError, match=r"attn_q\.zones\.weight\[3\]: is not a valid dead zone"):
        projection.read_zones()


def test_inspect_shows_it(golden_gguf: Path, sparse: Path) -> None:
    before, after = (describe(read_header(path), 100, tensors=False) for path in (golden_gguf, sparse))
    assert before["sparse"] is None
    assert after["sparse"]["max_density"] == 0.75
    assert after["sparse"]["projections"] == [
        {"layer": 0, "projection": "attn_q", "type": "Q8_0", "mean_zone": 63.5},
        {"layer": 1, "projection": "ffn_down", "type": "Q8_0", "mean_zone": 127.5},
    ]
    assert after["n_params"] == before["n_params"]
    assert after["hyperparameters"] == before["hyperparameters"]


def test_memory_counts_it_where_it_is_loaded(golden_gguf: Path, sparse: Path) -> None:
    dense, header = read_header(golden_gguf), read_header(sparse)
    assert sparse_values(header) == 128 * 128 + 128 + 128 * 256 + 256
    added = header.nbytes - dense.nbytes
    with_layout, without = (forecast_weights(header, sparse=sparse).weights for sparse in (True, False))
    assert without == forecast_weights(dense).weights
    assert with_layout - without == pytest.approx(added, rel=0.01)
    assert decoded_bytes(header) == decoded_bytes(dense)
    with pytest.raises(OutOfMemoryForecast):
        require_memory_for_weights(header, None, Room(header.nbytes))


def test_columns_are_not_repacked(golden_gguf: Path, tmp_path: Path) -> None:
    quantize_file(golden_gguf, tmp_path / "q4.gguf", "Q4_0", n_threads=1)
    plain = read_header(tmp_path / "q4.gguf")
    header = read_header(add_layout(golden_gguf, tmp_path / "sparse.gguf"))
    assert forecast_weights(plain).repacked > 0
    assert forecast_weights(header).repacked == 0


def test_quantizing_it_again_is_refused_and_copying_keeps_it(sparse: Path, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="has a sparse layout"):
        quantize_file(sparse, tmp_path / "out.gguf", "Q4_0", n_threads=1)
    quantize_file(sparse, tmp_path / "out.gguf", "COPY", n_threads=1)
    plan, copy = (check_sparse(read_header(path)) for path in (sparse, tmp_path / "out.gguf"))
    assert plan is not None and copy is not None
    for ours, theirs in zip(plan.projections, copy.projections, strict=True):
        assert np.array_equal(tensor_bytes(ours.columns), tensor_bytes(theirs.columns))
        assert np.array_equal(ours.read_zones(), theirs.read_zones())
