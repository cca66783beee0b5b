"""Giving a GGUF a sparse layout while it is quantized: neurons reordered, columns and dead zones added."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from sb_edge.arch import ARCH
from sb_edge.arch.model_spikes import check_plan
from sb_edge.arch.sparse_plan import (
    COLUMN_BLOCK,
    MAX_DENSITY_KEY,
    SPARSE_PROJECTIONS,
    check_sparse,
    columns_name,
    row_name,
    zones_name,
)
from sb_edge.evaluate.perplexity import token_losses
from sb_edge.gguf.floats import encoder
from sb_edge.gguf.reader import GgufHeader, TensorEntry, read_header
from sb_edge.gguf.rewrite import with_tensors
from sb_edge.gguf.types import BLOCK_SIZES
from sb_edge.gguf.values import tensor_bytes, tensor_values
from sb_edge.gguf.writer import PlannedTensor
from sb_edge.quant.sparse.dead_zones import zones
from sb_edge.quant.sparse.inputs import InputRecorder, Key, record_inputs
from sb_edge.quant.sparse.neuron_order import firing_order, movable_layers, write_reordered
from sb_edge.quant.sparse.zone_tuning import Candidate, Trial, ZoneTuning, tune_zones
from sb_edge.quant.tuning import Text
from sb_edge.runtime.session import Model
from sb_edge.util.errors import SparseError
from sb_edge.util.files import require_free_space, require_output
from sb_edge.util.hashes import sha256_of, sha256_of_bytes
from sb_edge.util.output import json_fields, to_json
from sb_edge.util.progress import progress_bar

FLOAT_TYPES = ("F32", "F16", "BF16")

NARROW_BITS = 5
"""Maximum bits per weight for columns in Q4_0; wider weights get columns in Q8_0."""

_PIECE = 1 << 20
"""Values quantized at once."""

Norms = NDArray[np.float32]


@dataclass(frozen=True)
class SparseSite:
    """A projection with a sparse layout: layer, name, the columns' type, predicted share of silent channels,
    local error (see `ZoneCurve`), and the mean of its dead zones."""

    layer: int
    projection: str
    type: str
    silent: float
    error: float
    mean_zone: float


@dataclass(frozen=True)
class SparseLayout:
    """Chosen layout and its measurements.

    Attributes:
        source, source_sha256: the name of the file that was quantized, and of all its parts the hash.
        text, text_sha256: what decided: its name, and the hash of its tokens as int32.
        tokens, held_out_tokens: predicted ones.
        budget, max_density: as asked for.
        n_projections: that the model has.
        left_out: Projections whose number of outputs is not a multiple of 32, or that are coded as spikes.
        reordered: layers whose neurons were.
        tuning: Tuning of the dead zones.
        sites: The sparse projections.
        held_out_dense, held_out_ratio: perplexity of another text, token by token; with the layout over that.
        added_bytes: of columns and zones.
    """

    source: str
    source_sha256: str
    text: str
    text_sha256: str
    tokens: int
    held_out: str
    held_out_tokens: int
    budget: float
    max_density: float
    n_projections: int
    left_out: tuple[Key, ...]
    reordered: tuple[int, ...]
    tuning: ZoneTuning
    sites: tuple[SparseSite, ...]
    held_out_dense: float
    held_out_ratio: float
    added_bytes: int

    def to_json(self) -> dict[str, Any]:
        """For JSON; docs/sparse.md describes the fields."""
        chosen = self.tuning.chosen
        return {
            **json_fields(
                self, "source", "source_sha256", "text", "text_sha256", "tokens", "budget", "max_density"
            ),
            "perplexity_dense": self.tuning.dense,
            "perplexity_ratio": chosen.ratio,
            **json_fields(self, "held_out", "held_out_tokens"),
            "held_out_perplexity_dense": self.held_out_dense,
            "held_out_perplexity_ratio": self.held_out_ratio,
            **json_fields(chosen.counts, "silent_share", "dense_share"),
            "saved": chosen.saved,
            **json_fields(self, "added_bytes", "n_projections"),
            "left_out": [row_name(*key) for key in self.left_out],
            "reordered_layers": list(self.reordered),
            "losses": self.tuning.losses,
            "trials": [
                {
                    "trade": trial.trade,
                    "perplexity_ratio": trial.ratio,
                    "saved": trial.saved,
                    "sparse_projections": sum(map(bool, trial.choice)),
                }
                for trial in self.tuning.trials
            ],
            "sites": to_json(self.sites),
        }


def quantize_sparse(
    source: Path,
    target: Path,
    write: Callable[[Path, Callable[[Path], SparseLayout]], SparseLayout],
    *,
    text: Text,
    held_out: Text,
    budget: float,
    max_density: float,
    reorder: bool = True,
    allow_requantize: bool = False,
    n_threads: int | None = None,
) -> SparseLayout:
    """Quantize a model and give it a sparse layout.

    Args:
        source: a GGUF of this architecture; columns are made of its weights, not of the quantized ones.
        target: what `write` writes; work files are kept beside it meanwhile.
        write: quantizes a source to `target`, and returns what the function makes of the finished file, which
            it may change.
        text: decides on the dead zones.
        held_out: another one, only measured.
        budget: perplexity of `text` may rise by this share over that of the dense product; > 0.
        max_density: stored: above this share of active channels a token takes the dense product; above 0, at
            most 1.
        reorder: put neurons that fire together side by side; adapters and importance matrices made for the
            model do not know the new places.
        allow_requantize: accept a source that is quantized.
        n_threads: None: as `default_threads`.

    Raises:
        SparseError: the architecture, the source's weights or a setting is unsuitable, or nothing keeps the
            budget.
        GgufError, SpikeError, OutputError, EngineError: as `quantize`.
    """
    _require_share("budget", budget, math.inf)
    _require_share("max_density", max_density, 1)
    header = read_header(source)
    require_output(target, header.files)
    usable, left_out = _projections(header, allow_requantize)
    norms = {key: _column_norms(tensor) for key, tensor in usable.items()}
    movable = movable_layers(header) if reorder else []
    firing = [layer for layer in movable if (layer, "ffn_down") in norms]
    recorder = InputRecorder(norms, firing)
    with Model(source, header=header) as model:
        record_inputs(model, text.tokens, recorder, n_threads=n_threads)
    curves = {key: each.curve() for key, each in recorder.importances.items()}
    orders = {layer: firing_order(fires) for layer, fires in recorder.firing().items()}
    for layer, order in orders.items():
        norms[layer, "ffn_down"] = norms[layer, "ffn_down"][order]
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target.parent) as name:
        folder = Path(name)
        floats = header
        if orders:
            require_free_space(folder, header.nbytes, "the model with its neurons reordered")
            floats = read_header(write_reordered(header, folder, orders))

        def finish(written: Path) -> SparseLayout:
            rows = {tensor.name: tensor for tensor in read_header(written).tensors}
            candidates = [
                Candidate(key, norms[key], curves[key], rows[row_name(*key)].nbytes) for key in usable
            ]
            layout = _Layout(floats, rows, folder / "layout.gguf", max_density)
            layout.write_all(written, [each.key for each in candidates])
            tuning = tune_zones(layout.path, candidates, text, budget, max_density, n_threads=n_threads)
            sites = _sites(candidates, tuning.chosen, layout)
            added = layout.write_chosen(written, [(site.layer, site.projection) for site in sites])
            _require_budget(written, text, tuning.dense, budget, n_threads)
            dense = _perplexity(written, held_out, n_threads, sparse=False)
            return SparseLayout(
                source=source.name,
                source_sha256=sha256_of(*header.files),
                text=text.name,
                text_sha256=sha256_of_bytes(np.array(text.tokens, "<i4").tobytes()),
                tokens=len(text.tokens) - 1,
                held_out=held_out.name,
                held_out_tokens=len(held_out.tokens) - 1,
                budget=budget,
                max_density=max_density,
                n_projections=len(usable) + len(left_out),
                left_out=tuple(left_out),
                reordered=tuple(orders),
                tuning=tuning,
                sites=sites,
                held_out_dense=dense,
                held_out_ratio=_perplexity(written, held_out, n_threads) / dense,
                added_bytes=added,
            )

        return write(floats.files[0], finish)


class _Layout:
    """A file with columns and zones of every candidate, out of which the chosen ones are taken."""

    def __init__(
        self, floats: GgufHeader, rows: Mapping[str, TensorEntry], path: Path, max_density: float
    ) -> None:
        self.path = path
        self._floats = {tensor.name: tensor for tensor in floats.tensors}
        self._rows = rows
        self._values = {MAX_DENSITY_KEY: float(max_density)}

    def type_of(self, key: Key) -> GGMLQuantizationType:
        """Of a projection's columns."""
        block, size = BLOCK_SIZES[self._rows[row_name(*key)].type]
        narrow = 8 * size / block <= NARROW_BITS
        return GGMLQuantizationType.Q4_0 if narrow else GGMLQuantizationType.Q8_0

    def write_all(self, source: Path, keys: Sequence[Key]) -> None:
        """Write `path`: the source with the layout of these projections, nothing silent."""
        planned = self._planned(keys)
        sources = {columns_name(*key): self._floats[row_name(*key)] for key in keys}
        with progress_bar("writing columns", sum(each.nbytes for each in planned), unit="bytes") as advance:

            def data(tensor: PlannedTensor) -> Iterator[np.ndarray]:
                if tensor.name not in sources:
                    yield np.zeros(tensor.nbytes, np.uint8)
                    return
                for piece in _quantized_columns(sources[tensor.name], tensor.qtype):
                    advance(piece.nbytes)
                    yield piece

            with_tensors(source, self.path, planned, data, values=self._values)

    def write_chosen(self, written: Path, keys: Sequence[Key]) -> int:
        """Add the layout of some projections, as it is in `path`, to the file; return the bytes."""
        tensors = {tensor.name: tensor for tensor in read_header(self.path).tensors}
        planned = self._planned(keys)

        def data(tensor: PlannedTensor) -> Iterator[np.ndarray]:
            yield np.ascontiguousarray(tensor_bytes(tensors[tensor.name])).reshape(-1)

        with_tensors(written, written, planned, data, values=self._values)
        return sum(tensor.nbytes for tensor in planned)

    def _planned(self, keys: Sequence[Key]) -> list[PlannedTensor]:
        planned = []
        for key in keys:
            row = self._rows[row_name(*key)]
            planned += [
                PlannedTensor(columns_name(*key), row.name, row.shape[::-1], self.type_of(key)),
                PlannedTensor(zones_name(*key), row.name, row.shape[1:], GGMLQuantizationType.F32),
            ]
        return planned


def _require_share(name: str, value: float, most: float) -> None:
    if not 0 < value <= most or math.isinf(value):
        expected = "a positive number" if math.isinf(most) else f"above 0, at most {most}"
        raise SparseError("is impossible", item=name, found=value, expected=expected)


def _projections(header: GgufHeader, allow_requantize: bool) -> tuple[dict[Key, TensorEntry], list[Key]]:
    """The projections that can have a layout, and those that cannot."""
    path = header.files[0]
    if header.arch != ARCH:
        raise SparseError(
            "has no sparse projections",
            path=path,
            item="general.architecture",
            found=header.arch,
            expected=ARCH,
        )
    if check_sparse(header) is not None:
        raise SparseError(
            "has a sparse layout already", path=path, hint="start from the file that it was made from"
        )
    plan = check_plan(header)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    usable, left_out = {}, []
    for layer in range(header.integer("block_count")):
        for name in SPARSE_PROJECTIONS:
            tensor = tensors.get(row_name(layer, name))
            if tensor is None or len(tensor.shape) != 2:
                continue
            if tensor.type not in FLOAT_TYPES and not allow_requantize:
                raise SparseError(
                    "columns are made of floating-point weights",
                    path=path,
                    item=tensor.name,
                    found=tensor.type,
                    hint="start from an F16 or F32 file, or allow the loss by --allow-requantize",
                )
            is_coded = plan is not None and plan.k_of(layer, name) > 0
            if is_coded or tensor.shape[0] % COLUMN_BLOCK:
                left_out.append((layer, name))
            else:
                usable[layer, name] = tensor
    if not usable:
        raise SparseError(
            "no projection can have a sparse layout",
            path=path,
            expected=f"outputs in multiples of {COLUMN_BLOCK}, inputs not coded as spikes",
        )
    return usable, left_out


def _column_norms(tensor: TensorEntry) -> Norms:
    """The norm of each column of a weight, float32 [n]."""
    values = tensor_values(tensor)
    norms: Norms = np.sqrt(np.einsum("ij,ij->j", values, values, dtype=np.float64)).astype(np.float32)
    if not np.isfinite(norms).all():
        raise SparseError("holds NaN or infinity", path=tensor.file, item=tensor.name)
    return norms


def _quantized_columns(tensor: TensorEntry, kind: GGMLQuantizationType) -> Iterator[np.ndarray]:
    """A weight [m, n] by columns: each one's m values as `kind`, uint8."""
    values = tensor_values(tensor)
    step = max(_PIECE // len(values), 1)
    to_q8_0 = encoder("q8_0")
    for start in range(0, values.shape[1], step):
        columns = np.ascontiguousarray(values[:, start : start + step].T)
        if kind == GGMLQuantizationType.Q8_0:
            piece = to_q8_0(columns.reshape(-1))
            if piece is None:
                raise SparseError("does not fit Q8_0", path=tensor.file, item=tensor.name)
            yield piece
        else:
            yield gguf.quants.quantize(columns, kind).reshape(-1)


def _sites(candidates: Sequence[Candidate], chosen: Trial, layout: _Layout) -> tuple[SparseSite, ...]:
    sites = []
    for candidate, place in zip(candidates, chosen.choice, strict=True):
        if place:
            curve = candidate.curve
            sites.append(
                SparseSite(
                    *candidate.key,
                    layout.type_of(candidate.key).name,
                    float(curve.silent[place]),
                    float(curve.errors[place]),
                    float(zones(curve.taus[place], candidate.norms).mean(dtype=np.float64)),
                )
            )
    return tuple(sites)


def _perplexity(path: Path, text: Text, n_threads: int | None, *, sparse: bool = True) -> float:
    """Perplexity with or without the layout, token by token."""
    with Model(path, sparse=sparse) as model:
        return math.exp(token_losses(model, text.tokens, n_batch=1, n_threads=n_threads).mean())


def _require_budget(path: Path, text: Text, dense: float, budget: float, n_threads: int | None) -> None:
    ratio = _perplexity(path, text, n_threads) / dense
    if ratio > 1 + budget:
        raise SparseError(
            "the budget is broken by the file with the choice in it",
            path=text.name,
            found=f"perplexity {ratio:.5f} times that of the dense product",
            expected=f"at most {1 + budget:g} times",
            hint="allow more, or give a longer text",
        )
