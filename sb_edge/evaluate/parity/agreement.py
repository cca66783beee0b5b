"""Engine against reference: the same tokens through both, and how far the results lie apart.

The reference is the PyTorch model on the checkpoint, or logits recorded earlier; the latter needs no PyTorch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sb_edge.evaluate.parity.recording import load_recording
from sb_edge.evaluate.parity.spike_counts import Counts, SpikeParity, compare_counts, observe_engine
from sb_edge.util.errors import ParityError
from sb_edge.util.logits import Agreement, compare_logits, nmse
from sb_edge.util.progress import progress_bar
from sb_edge.util.tolerances import COUNTS_IDENTICAL, ENGINE_BY_KV_TYPE, SPIKES, SPIKES_F32

if TYPE_CHECKING:
    from sb_edge.arch.config import SpikingBrainConfig
    from sb_edge.gguf.reader import GgufHeader
    from sb_edge.runtime.session import Model

DEFAULT_TOKENS = 128
REFERENCE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
LAYER_FILTER = r"^(l_out-\d+|result_norm)$"
"""Tensors compared per layer: a block's output, and the final norm's."""

KvType = Literal["f16", "f32", "q8_0"]


class Evaluates(Protocol):
    """The part of an engine session that this module uses."""

    def evaluate(self, tokens: Sequence[int], *, all_logits: bool = False) -> NDArray[np.float32]:
        """Append tokens; [vocab], or [n, vocab] with `all_logits`."""


@dataclass(frozen=True)
class Rows:
    """One computation's results.

    Attributes:
        logits: [T, vocab].
        layers: "l_out-0", ... to [T, hidden]; empty unless asked for.
        counts: of every coded projection; empty without spikes.
    """

    logits: NDArray[np.floating]
    layers: dict[str, NDArray[np.floating]]
    counts: Counts = field(default_factory=dict)


@dataclass(frozen=True)
class EngineRun:
    """The prompt fed `piece` tokens at a time, compared; `layers`: tensor name to NMSE, in graph order."""

    piece: int
    agreement: Agreement
    layers: dict[str, float]


@dataclass(frozen=True)
class Greedy:
    """Both sides' greedy continuations of the prompt, as token ids."""

    reference: list[int]
    engine: list[int]

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs; None where none does."""
        pairs = zip(self.reference, self.engine, strict=True)
        return next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), None)


@dataclass(frozen=True)
class ParityReport:
    """What a comparison found.

    Attributes:
        gguf: the engine's model.
        reference: the checkpoint or recording, and how it was computed.
        tokens: length of the prompt.
        kv_type: type of the engine's K and V.
        tolerance: ceiling on the NMSE.
        runs: one for the whole prompt (piece = tokens), then one a piece size.
        per_layer: whether layers were compared.
        greedy: None unless asked for.
        spikes: None without spikes, and against a recording.
    """

    gguf: str
    reference: str
    tokens: int
    kv_type: str
    tolerance: float
    runs: tuple[EngineRun, ...]
    per_layer: bool = False
    greedy: Greedy | None = None
    spikes: SpikeParity | None = None

    @property
    def worst(self) -> EngineRun:
        """The run with the largest NMSE: the one that is reported."""
        return max(self.runs, key=lambda run: run.agreement.nmse)

    @property
    def first_divergent_layer(self) -> str | None:
        """The first tensor of the worst run whose NMSE is over the tolerance."""
        return next((name for name, value in self.worst.layers.items() if value > self.tolerance), None)

    @property
    def same_text(self) -> bool:
        """Whether the greedy continuations agree; true where none was asked for."""
        return self.greedy is None or self.greedy.first_difference is None

    @property
    def passed(self) -> bool:
        """Whether all runs are within the tolerance, and texts and spike counts agree."""
        within = self.worst.agreement.nmse <= self.tolerance
        return within and self.same_text and (self.spikes is None or self.spikes.passed)

    def document(self) -> dict[str, Any]:
        """The JSON form; docs/parity.md describes the fields."""
        worst = self.worst
        document: dict[str, Any] = {
            "gguf": self.gguf,
            "reference": self.reference,
            **asdict(worst.agreement),
            "tolerance": self.tolerance,
            "passed": self.passed,
            "tokens": self.tokens,
            "pieces": [run.piece for run in self.runs],
            "kv_type": self.kv_type,
            "runs": [{"piece": run.piece, **asdict(run.agreement)} for run in self.runs],
        }
        if self.per_layer:
            document["layers"] = [{"name": name, "nmse": value} for name, value in worst.layers.items()]
            document["first_divergent_layer"] = self.first_divergent_layer
        if self.greedy:
            document["greedy"] = {
                **asdict(self.greedy),
                "identical": self.same_text,
                "first_difference": self.greedy.first_difference,
            }
        if self.spikes:
            document |= self.spikes.document()
        return document

    def require_passed(self) -> None:
        """Raise unless passed.

        Raises:
            ParityError: says by how much, and where to look.
        """
        if self.spikes:
            self.spikes.require_passed(self.gguf)
        worst = self.worst
        if worst.agreement.nmse > self.tolerance:
            raise ParityError(
                "the engine does not agree with the reference",
                path=self.gguf,
                item=self.first_divergent_layer or f"position {worst.agreement.worst_position}",
                found=f"NMSE {worst.agreement.nmse:.2e}",
                expected=f"at most {self.tolerance:.0e}",
                hint="for quantized weights state a --tolerance; --per-layer shows where it begins",
            )
        if self.greedy and not self.same_text:
            raise ParityError(
                "the greedy texts differ", path=self.gguf, item=f"new token {self.greedy.first_difference}"
            )


def default_kv_type(model: Model) -> KvType:
    """The engine's own default, f16; f32 for a model that spikes, whose counts f16 K and V would move."""
    return "f32" if model.spike_plan else "f16"


def against_recording(
    gguf: Path,
    recording: Path,
    *,
    pieces: Sequence[int] = (),
    kv_type: KvType | None = None,
    n_tokens: int | None = None,
    tolerance: float | None = None,
) -> ParityReport:
    """Compare the engine with recorded logits. Needs no PyTorch.

    Args:
        gguf: the engine's model.
        recording: an .npz, see `sb_edge.evaluate.parity.recording`.
        pieces: after the whole prompt, feed it again this many tokens at a time.
        kv_type: type of the engine's K and V; None: `default_kv_type`.
        n_tokens: take only the recording's first tokens.
        tolerance: ceiling on the NMSE; None takes the one for the KV type, with or without spikes.

    Raises:
        ParityError: the recording is damaged or belongs to another model.
        OutOfMemoryForecast: it will not fit in memory; nothing has been loaded.
    """
    from sb_edge.runtime.session import Model

    header = _header_that_fits(gguf, n_tokens, kv_type)
    with Model(gguf, header=header) as model:
        kv_type = kv_type or default_kv_type(model)
        recorded = load_recording(recording, n_vocab=model.n_vocab, max_tokens=model.n_ctx_train)
        tokens = recorded.input_ids[:n_tokens].tolist()
        reference = Rows(recorded.logits[:n_tokens], {})
        runs = _runs(model, tokens, reference, pieces, kv_type)
        if tolerance is None:
            tolerance = _recording_ceiling(model, kv_type)
    return ParityReport(str(gguf), f"{recording}, recorded", len(tokens), kv_type, tolerance, runs)


def against_checkpoint(
    gguf: Path,
    checkpoint: Path,
    *,
    text: str | None = None,
    recording: Path | None = None,
    n_tokens: int | None = None,
    pieces: Sequence[int] = (),
    kv_type: KvType | None = None,
    per_layer: bool = False,
    n_greedy: int = 0,
    tolerance: float | None = None,
    counts_identical: float | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "float64", "bfloat16"] = "float32",
) -> ParityReport:
    """Compare the engine with the PyTorch reference on the checkpoint that the GGUF was made from.

    The reference spikes as the GGUF does; then the spike counts are compared too.

    Args:
        gguf: the engine's model.
        checkpoint: a folder in the public layout.
        text: the prompt, in the GGUF's vocabulary; None takes random tokens, always the same.
        recording: an .npz whose prompt to take; its logits are not used.
        n_tokens: length of the prompt: its first tokens, or how many random ones (None: 128).
        pieces, kv_type, tolerance: as in `against_recording`.
        per_layer: compare every block's output too.
        n_greedy: compare this many greedily generated tokens too; 0 for none.
        counts_identical: share of identical counts to ask for; None: `COUNTS_IDENTICAL`, the rest off by one.
        device: see `sb_edge.reference.device.pick_device`.
        dtype: the reference's weights and activations.

    Raises:
        ParityError: PyTorch is missing, or the two models differ in size.
        CheckpointError, DeviceError: see the reference.
        OutOfMemoryForecast: it will not fit in memory; nothing has been loaded.
    """
    from sb_edge.reference import require_torch

    require_torch()
    from sb_edge.evaluate.parity.reference_side import Reference
    from sb_edge.runtime.session import Model

    header = _header_that_fits(gguf, n_tokens, kv_type, dtype if device == "cpu" else None)
    with Model(gguf, header=header) as model:
        kv_type = kv_type or default_kv_type(model)
        tokens = prompt_tokens(model, text, recording, n_tokens)
        plan = model.spike_plan
        observed = observe_engine(model, tokens, kv_type) if plan else None
        with progress_bar("reference", None):
            reference = Reference(checkpoint, device=device, dtype=dtype, spikes=plan)
            _require_same_sizes(model, checkpoint, reference.config)
            rows = reference.rows(tokens, per_layer=per_layer)
            same_inputs = reference.counts(observed.inputs) if observed else {}
            expected_text = reference.greedy(tokens, n_greedy) if n_greedy else []
            how = f"{checkpoint}, {dtype} on {reference.device}"
            del reference  # its weights, before the engine takes its buffers
        runs = _runs(model, tokens, rows, pieces, kv_type)
        spikes = None
        if observed:
            spikes = SpikeParity(
                compare_counts(same_inputs, observed.counts),
                compare_counts(rows.counts, observed.counts),
                COUNTS_IDENTICAL[kv_type] if counts_identical is None else counts_identical,
                off_by_one=counts_identical is None,
            )
        greedy = Greedy(expected_text, _engine_greedy(model, tokens, n_greedy, kv_type)) if n_greedy else None
    if tolerance is None:
        tolerance = SPIKES.nmse if spikes else ENGINE_BY_KV_TYPE[kv_type].nmse
    return ParityReport(str(gguf), how, len(tokens), kv_type, tolerance, runs, per_layer, greedy, spikes)


def _header_that_fits(
    gguf: Path, n_tokens: int | None, kv_type: str | None, dtype: str | None = None
) -> GgufHeader:
    """Refuse before anything is loaded; `dtype` is that of the reference's weights, None without them."""
    from sb_edge.arch.sparse_plan import sparse_values
    from sb_edge.gguf.reader import read_header
    from sb_edge.memory.check import require_memory
    from sb_edge.memory.forecast import EngineSettings

    header = read_header(gguf)
    n_ctx = n_tokens or DEFAULT_TOKENS
    kind = kv_type or "f32"
    require_memory(
        header,
        n_ctx,
        EngineSettings(kind, kind, n_outputs=min(n_ctx, 512)),
        extra=(header.n_params - sparse_values(header)) * REFERENCE_BYTES[dtype] if dtype else 0,
        context_option="--tokens",
        kv_option=None,
    )
    return header


def _require_same_sizes(model: Model, checkpoint: Path, config: SpikingBrainConfig) -> None:
    sizes = {
        "vocab_size": model.n_vocab,
        "hidden_size": model.header.metadata.get(f"{model.arch}.embedding_length"),
        "num_hidden_layers": model.header.metadata.get(f"{model.arch}.block_count"),
    }
    for key, expected in sizes.items():
        found = getattr(config, key)
        if found != expected:
            raise ParityError(
                "not the checkpoint that this GGUF was made from",
                path=checkpoint,
                item=key,
                found=found,
                expected=f"{expected} as in {model.path}",
            )


def prompt_tokens(model: Model, text: str | None, recording: Path | None, n_tokens: int | None) -> list[int]:
    """The prompt to compare on: `text`'s or the recording's first tokens, or random ones from a fixed seed.

    Raises:
        ParityError: an empty text, a damaged recording, or a prompt longer than the model's context.
    """
    if text is not None:
        tokens = model.tokenize(text)[:n_tokens]
    elif recording is not None:
        recorded = load_recording(recording, n_vocab=model.n_vocab, max_tokens=model.n_ctx_train)
        tokens = recorded.input_ids[:n_tokens].tolist()
    else:
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, model.n_vocab, n_tokens or DEFAULT_TOKENS).tolist()
    if not tokens:
        raise ParityError("the prompt has no tokens", item="text", found=repr(text))
    if len(tokens) > model.n_ctx_train:
        raise ParityError(
            "the prompt is longer than the model's context",
            path=model.path,
            item="tokens",
            found=len(tokens),
            expected=f"at most {model.n_ctx_train}",
        )
    return tokens


def feed(session: Evaluates, tokens: Sequence[int], piece: int) -> NDArray[np.float32]:
    """All logits, [T, vocab], of a prompt fed `piece` tokens at a time."""
    starts = range(0, len(tokens), piece)
    return np.concatenate([session.evaluate(tokens[at : at + piece], all_logits=True) for at in starts])


def continue_greedily(session: Evaluates, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """The engine's counterpart of `sb_edge.reference.greedy.greedy`."""
    tokens: list[int] = []
    logits = session.evaluate(prompt)
    while len(tokens) < n_tokens:
        tokens.append(int(logits.argmax()))
        if len(tokens) < n_tokens:
            logits = session.evaluate(tokens[-1:])
    return tokens


def compare_layers(reference: Rows, other: Rows) -> dict[str, float]:
    """NMSE of every tensor that the reference holds, in its order.

    Raises:
        ParityError: the other side lacks one, or has another shape.
    """
    for name in reference.layers:
        if name not in other.layers:
            raise ParityError("the engine did not report this tensor", item=name)
    return {name: nmse(rows, other.layers[name]) for name, rows in reference.layers.items()}


def _recording_ceiling(model: Model, kv_type: KvType) -> float:
    if model.spike_plan is None:
        return ENGINE_BY_KV_TYPE[kv_type].nmse
    return (SPIKES_F32 if kv_type == "f32" else SPIKES).nmse


def _runs(
    model: Model, tokens: list[int], reference: Rows, pieces: Sequence[int], kv_type: KvType
) -> tuple[EngineRun, ...]:
    """The whole prompt, then every piece size that is smaller, once each."""
    sizes = dict.fromkeys((len(tokens), *(piece for piece in pieces if piece < len(tokens))))
    runs = []
    with progress_bar("engine", len(sizes)) as advance:
        for piece in sizes:
            rows = _engine_rows(model, tokens, piece, kv_type, per_layer=bool(reference.layers))
            agreement = compare_logits(reference.logits, rows.logits)
            runs.append(EngineRun(piece, agreement, compare_layers(reference, rows)))
            advance(1)
    return tuple(runs)


def _engine_rows(model: Model, tokens: list[int], piece: int, kv_type: KvType, *, per_layer: bool) -> Rows:
    from sb_edge.runtime.session import Session

    collected: dict[str, list[NDArray[np.float32]]] = defaultdict(list)

    def collect(name: str, rows: NDArray[np.float32]) -> None:
        collected[name].append(rows)

    with Session(
        model,
        n_ctx=len(tokens),
        type_k=kv_type,
        type_v=kv_type,
        on_tensor=collect if per_layer else None,
        tensor_filter=LAYER_FILTER if per_layer else None,
    ) as session:
        logits = feed(session, tokens, piece)
    return Rows(logits, {name: np.concatenate(rows) for name, rows in collected.items()})


def _engine_greedy(model: Model, prompt: list[int], n_tokens: int, kv_type: KvType) -> list[int]:
    from sb_edge.runtime.session import Session

    with Session(model, n_ctx=len(prompt) + n_tokens, type_k=kv_type, type_v=kv_type) as session:
        return continue_greedily(session, prompt, n_tokens)
