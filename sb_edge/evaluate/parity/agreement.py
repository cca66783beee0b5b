"""Compare engine and reference on the same tokens.

The reference is the PyTorch model on the checkpoint, or recorded logits, which need no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.model_check import read_model
from sb_edge.arch.sparse_plan import sparse_values
from sb_edge.evaluate.parity.engine_side import (
    KvType,
    KvTypes,
    Rows,
    chosen_kv_types,
    evaluate_prompt,
    generate_greedily,
    observe_engine,
)
from sb_edge.evaluate.parity.parity_report import EngineRun, Greedy, ParityReport
from sb_edge.evaluate.parity.recording import load_recording
from sb_edge.evaluate.parity.spike_counts import SpikeParity, compare_counts
from sb_edge.evaluate.perplexity import text_tokens
from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.check import require_memory
from sb_edge.memory.forecast import EngineSettings
from sb_edge.reference import require_torch
from sb_edge.runtime.session import Model
from sb_edge.util.errors import ParityError
from sb_edge.util.logits import compare_logits, nmse
from sb_edge.util.progress import progress_bar
from sb_edge.util.tolerances import COUNTS_IDENTICAL, ENGINE_BY_KV_TYPE, SPIKES, SPIKES_F32

DEFAULT_TOKENS = 128
REFERENCE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}


def against_recording(
    gguf: Path,
    recording: Path,
    *,
    pieces: Sequence[int] = (),
    type_k: KvType | None = None,
    type_v: KvType | None = None,
    n_tokens: int | None = None,
    tolerance: float | None = None,
) -> ParityReport:
    """Compare the engine with recorded logits; does not need PyTorch.

    Args:
        gguf: the engine's model.
        recording: .npz file, see `sb_edge.evaluate.parity.recording`.
        pieces: evaluate the prompt again with these numbers of tokens at a time.
        type_k, type_v: types of the engine's K and V; None: as `chosen_kv_types`.
        n_tokens: use only the first tokens of the recording.
        tolerance: maximum NMSE; None: that of the KV types, with or without spikes.

    Raises:
        ParityError: the recording is damaged, or from another model.
        OutOfMemoryForecast: the models do not fit in memory; nothing was loaded.
    """
    header = _header_that_fits(gguf, n_tokens, type_k, type_v)
    with Model(gguf, header=header) as model:
        kv_types = chosen_kv_types(model, type_k, type_v)
        recorded = load_recording(recording, n_vocab=model.n_vocab, max_tokens=model.n_ctx_train)
        tokens = recorded.input_ids[:n_tokens].tolist()
        reference = Rows(recorded.logits[:n_tokens], {})
        runs = _runs(model, tokens, reference, pieces, kv_types)
        if tolerance is None:
            tolerance = _recording_ceiling(model, kv_types)
    return ParityReport(str(gguf), f"{recording}, recorded", len(tokens), kv_types, tolerance, runs)


def against_checkpoint(
    gguf: Path,
    checkpoint: Path,
    *,
    text: str | None = None,
    recording: Path | None = None,
    n_tokens: int | None = None,
    pieces: Sequence[int] = (),
    type_k: KvType | None = None,
    type_v: KvType | None = None,
    per_layer: bool = False,
    n_greedy: int = 0,
    tolerance: float | None = None,
    counts_identical: float | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "float64", "bfloat16"] = "float32",
) -> ParityReport:
    """Compare the engine with the PyTorch reference on the GGUF's checkpoint.

    The reference uses the GGUF's spike plan. For a spiking model, spike counts are compared, too.

    Args:
        gguf: the engine's model.
        checkpoint: folder in the public layout.
        text: the prompt; None: random tokens from a fixed seed.
        recording: .npz file with the prompt; its logits are not used.
        n_tokens: maximum length of the prompt, or number of random tokens (None: 128).
        pieces, type_k, type_v, tolerance: see `against_recording`.
        per_layer: also compare every block's output.
        n_greedy: number of greedily generated tokens to compare.
        counts_identical: required share of identical counts; None: `COUNTS_IDENTICAL`, others off by one.
        device: see `sb_edge.reference.device.pick_device`.
        dtype: type of the reference's weights and activations.

    Raises:
        ParityError: PyTorch is missing, or the two models have different sizes.
        CheckpointError, DeviceError: see `Reference`.
        OutOfMemoryForecast: the models do not fit in memory; nothing was loaded.
    """
    require_torch()
    from sb_edge.evaluate.parity.reference_side import Reference

    header = _header_that_fits(gguf, n_tokens, type_k, type_v, dtype if device == "cpu" else None)
    with Model(gguf, header=header) as model:
        kv_types = chosen_kv_types(model, type_k, type_v)
        tokens = prompt_tokens(model, text, recording, n_tokens)
        plan = model.spike_plan
        observed = observe_engine(model, tokens, kv_types) if plan else None
        with progress_bar("reference", None):
            reference = Reference(checkpoint, device=device, dtype=dtype, spikes=plan)
            _require_same_sizes(model, checkpoint, reference.config)
            rows = reference.rows(tokens, per_layer=per_layer)
            same_inputs = reference.counts(observed.inputs) if observed else {}
            expected_text = reference.greedy(tokens, n_greedy) if n_greedy else []
            how = f"{checkpoint}, {dtype} on {reference.device}"
            del reference  # free its weights before the engine allocates buffers
        runs = _runs(model, tokens, rows, pieces, kv_types)
        spikes = None
        if observed:
            spikes = SpikeParity(
                compare_counts(same_inputs, observed.counts),
                compare_counts(rows.counts, observed.counts),
                min(COUNTS_IDENTICAL[kind] for kind in kv_types)
                if counts_identical is None
                else counts_identical,
                off_by_one=counts_identical is None,
            )
        greedy = (
            Greedy(expected_text, generate_greedily(model, tokens, n_greedy, kv_types)) if n_greedy else None
        )
    if tolerance is None:
        tolerance = SPIKES.nmse if spikes else _engine_ceiling(kv_types)
    return ParityReport(str(gguf), how, len(tokens), kv_types, tolerance, runs, per_layer, greedy, spikes)


def _header_that_fits(
    gguf: Path, n_tokens: int | None, type_k: str | None, type_v: str | None, dtype: str | None = None
) -> GgufHeader:
    """Check the memory before loading; `dtype`: type of the reference's weights, None without a reference."""
    header = read_model(gguf)
    n_ctx = n_tokens or DEFAULT_TOKENS
    require_memory(
        header,
        n_ctx,
        EngineSettings(type_k or "f32", type_v or "f32", n_outputs=min(n_ctx, 512)),
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
                "not the checkpoint of this GGUF",
                path=checkpoint,
                item=key,
                found=found,
                expected=f"{expected} as in {model.path}",
            )


def prompt_tokens(model: Model, text: str | None, recording: Path | None, n_tokens: int | None) -> list[int]:
    """The first tokens of `text` or of the recording, or random tokens from a fixed seed.

    Raises:
        ParityError: an empty text, a damaged recording, or a prompt longer than the model's context.
    """
    if text is not None:
        if n_tokens is None:
            tokens = model.tokenize(text)
        else:
            tokens = text_tokens(model, text, n_tokens, parse_special=True)
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


def compare_layers(reference: Rows, other: Rows) -> dict[str, float]:
    """NMSE of every tensor of the reference, in its order.

    Raises:
        ParityError: a tensor is missing on the other side, or has another shape.
    """
    for name in reference.layers:
        if name not in other.layers:
            raise ParityError("the engine did not report this tensor", item=name)
    return {name: nmse(rows, other.layers[name]) for name, rows in reference.layers.items()}


def _engine_ceiling(kv_types: KvTypes) -> float:
    return max(ENGINE_BY_KV_TYPE[kind].nmse for kind in kv_types)


def _recording_ceiling(model: Model, kv_types: KvTypes) -> float:
    if model.spike_plan is None:
        return _engine_ceiling(kv_types)
    return (SPIKES_F32 if kv_types == ("f32", "f32") else SPIKES).nmse


def _runs(
    model: Model, tokens: list[int], reference: Rows, pieces: Sequence[int], kv_types: KvTypes
) -> tuple[EngineRun, ...]:
    """Compare the whole prompt, then each piece size once."""
    sizes = dict.fromkeys((len(tokens), *pieces))
    if max(sizes) > len(tokens):
        raise ParityError(
            "is longer than the prompt",
            item="--pieces",
            found=max(sizes),
            expected=f"at most {len(tokens)} tokens",
        )
    runs = []
    with progress_bar("engine", len(sizes)) as advance:
        for piece in sizes:
            rows = evaluate_prompt(model, tokens, piece, kv_types, per_layer=bool(reference.layers))
            agreement = compare_logits(reference.logits, rows.logits)
            runs.append(EngineRun(piece, agreement, compare_layers(reference, rows)))
            advance(1)
    return tuple(runs)
