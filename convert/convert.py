"""Convert a SpikingBrain checkpoint to GGUF in chunks: memory use does not depend on the model size."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QType

from sb_edge.arch import ARCH
from sb_edge.arch.config import SpikingBrainConfig
from sb_edge.arch.model_spikes import choose_plan, released_plan
from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.arch.tensors import SCALE_GROUP, TensorLayout, TensorSpec
from sb_edge.convert.checkpoint.folder import Checkpoint
from sb_edge.convert.checkpoint.tensor_check import account_for_tensors
from sb_edge.convert.metadata import default_file_name, load_metadata
from sb_edge.convert.vocab.vocabulary import add_vocabulary, load_vocabulary
from sb_edge.convert.w8aspike import CodesReport, CodeStore, check_scales
from sb_edge.gguf.floats import Encoder, encoder, is_finite, to_float32
from sb_edge.gguf.writer import PlannedTensor, file_size, planned_files, write_gguf
from sb_edge.util.errors import CheckpointError, ConfigError
from sb_edge.util.files import require_free_space, require_output
from sb_edge.util.progress import Advance, progress_bar

OUTTYPES = {"f32": QType.F32, "f16": QType.F16, "bf16": QType.BF16, "q8_0": QType.Q8_0}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_CHUNK_BYTES = 1 << 20  # input and output of a chunk fit the L2 cache
_HEADER_ALLOWANCE = 64 << 20  # keys, tokens and padding, in the check of free space


@dataclass(frozen=True)
class ConversionReport:
    """Result of a conversion, or of a dry run.

    Attributes:
        files: the GGUF, or its parts.
        outtype: type of the matrices; never "auto".
        tensors: all tensors, in file order.
        nbytes: size of the files (in a dry run: of the tensors), bytes.
        seconds: duration, including synchronisation with the disk.
        vocabulary: "gpt2", "llama" or "no_vocab", as in `tokenizer.ggml.model`.
        spikes: spike plan of the GGUF; None: no spikes.
        codes: statistics of the integer weights of a W8ASpike checkpoint; None for others and in a dry run.
    """

    files: tuple[Path, ...]
    outtype: str
    tensors: tuple[PlannedTensor, ...]
    nbytes: int
    seconds: float
    vocabulary: str
    spikes: SpikePlan | None
    codes: CodesReport | None


def convert_checkpoint(
    checkpoint: Path,
    outfile: Path | None,
    *,
    outtype: str = "auto",
    metadata_file: Path | None = None,
    split_max_size: int = 0,
    dry_run: bool = False,
    spike_k: float | None = None,
    spike_projections: Sequence[str] | None = None,
) -> ConversionReport:
    """Convert a checkpoint in the public layout to GGUF.

    Args:
        checkpoint: the folder.
        outfile: a file name, in which `{ftype}` is replaced by the type, or a folder; None: the folder of the
            checkpoint. A file in a folder is named by GGUF's convention.
        outtype: "f32", "f16", "bf16", "q8_0" or "auto": bf16 if the first 16-bit matrix is bf16, else f16
            (the rule of llama.cpp's converter); q8_0 for a W8ASpike checkpoint. Norms, biases and the gates'
            pairs are always F32. With "q8_0", the integer codes of a W8ASpike checkpoint are stored
            unchanged, and matrices whose rows are not a multiple of 32 become F16.
        metadata_file: JSON file of `general.*` keys that override the model card.
        split_max_size: bytes of tensor data per part; 0: one file.
        dry_run: check everything except the values, and write nothing.
        spike_k: k of the coded projections; None: the release's plan for a W8ASpike checkpoint, no spikes for
            others.
        spike_projections: coded projections, out of `spike_plan.PROJECTIONS`; None: those of the release for
            a W8ASpike checkpoint, else all.

    Raises:
        CheckpointError: the checkpoint is damaged, has an unknown layout, or holds NaN or infinity.
        ConfigError: the FFNs of the checkpoint are mixtures of experts, it has `attn_heads`, or the type is
            unknown.
        OutputError: the output cannot be written, or would replace a file of the checkpoint.
        SpikeError: k is not a positive number, or the model does not have a projection.
    """
    start = time.perf_counter()
    source = Checkpoint.open(checkpoint)
    if any(source.config.moe_layers):
        raise ConfigError(
            "the engine does not support mixtures of experts",
            path=source.folder / "config.json",
            item="num_experts",
            found=source.config.num_experts,
            expected=0,
            hint="convert the dense checkpoint",
        )
    if source.config.attn_heads is not None:
        raise ConfigError(
            "the engine does not support GLA layers with heads of window attention",
            path=source.folder / "config.json",
            item="attn_heads",
            hint="the reference computes them",
        )
    layout, table = account_for_tensors(source)
    vocabulary = load_vocabulary(source.folder, source.config)
    outtype = _guess_outtype(source, layout) if outtype == "auto" else outtype
    if outtype not in OUTTYPES:
        known = ", ".join([*OUTTYPES, "auto"])
        raise ConfigError("unknown type", item="outtype", found=outtype, expected=known)
    tensors = [
        PlannedTensor(spec.gguf_name, name, spec.shape, _qtype(spec, outtype))
        for name, spec in table.items()
        if spec.gguf_name
    ]
    names = [tensor.name for tensor in tensors]
    spikes = choose_plan(
        released_plan(names) if layout.quantized else None, names, spike_k, spike_projections
    )
    metadata = load_metadata(source.folder, metadata_file, sum(prod(tensor.shape) for tensor in tensors))
    path = _output_path(source.folder, outfile, default_file_name(metadata, outtype.upper()), outtype)
    kind = vocabulary.model if vocabulary else "no_vocab"
    nbytes = sum(tensor.nbytes for tensor in tensors)

    def report(files: Sequence[Path], nbytes: int, codes: CodesReport | None) -> ConversionReport:
        seconds = time.perf_counter() - start
        return ConversionReport(tuple(files), outtype, tuple(tensors), nbytes, seconds, kind, spikes, codes)

    if dry_run:
        return report(planned_files(path, tensors, split_max_size), nbytes, None)

    def set_metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_type(gguf.GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        add_hyperparameters(writer, source.config, layout)
        if spikes:
            add_spikes(writer, spikes)
        writer.add_file_type(FILE_TYPES[outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_vocabulary(writer, vocabulary)

    inputs = [file for file in source.folder.iterdir() if file.suffix != ".gguf"]
    for file in planned_files(path, tensors, split_max_size):
        require_output(file, inputs)
    require_free_space(path.parent, nbytes + _HEADER_ALLOWANCE, "the GGUF")
    check_scales(source, table, half_precision=outtype == "q8_0")
    weights = _Weights(source, table)
    total = sum(source.info(tensor.source).nbytes for tensor in tensors)
    with progress_bar("converting", total, unit="bytes") as advance:
        files = write_gguf(
            path,
            ARCH,
            tensors,
            set_metadata,
            lambda tensor: weights.data(tensor, advance),
            split_max_size=split_max_size,
        )
    return report(files, file_size(files), weights.codes.report() if layout.quantized else None)


def _guess_outtype(source: Checkpoint, layout: TensorLayout) -> str:
    if layout.quantized:
        return "q8_0"
    types = [source.info(name).dtype.name for name in source.names if len(source.info(name).shape) >= 2]
    return "bf16" if next((name for name in types if name != "float32"), None) == "bfloat16" else "f16"


def _qtype(spec: TensorSpec, outtype: str) -> QType:
    if spec.keep_f32:
        return QType.F32
    qtype = OUTTYPES[outtype]
    block, _ = gguf.GGML_QUANT_SIZES[qtype]
    return qtype if spec.shape[-1] % block == 0 else QType.F16


def _output_path(folder: Path, outfile: Path | None, default_name: str, outtype: str) -> Path:
    if outfile is None:
        return folder / default_name
    if outfile.is_dir():
        return outfile / default_name
    name = outfile.name
    for key in ("ftype", "outtype"):
        name = name.replace(f"{{{key}}}", outtype).replace(f"{{{key.upper()}}}", outtype.upper())
    return outfile.with_name(name)


def add_hyperparameters(writer: gguf.GGUFWriter, config: SpikingBrainConfig, layout: TensorLayout) -> None:
    """Add the `spikingbrain.*` keys (docs/gguf.md) from which the engine builds its graph."""
    integers = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.sliding_window": config.sliding_window,
        "attention.decay_lora_rank": layout.gate_rank,
        "rope.dimension_count": config.head_dim,
    }
    for key, value in integers.items():
        writer.add_uint32(f"{ARCH}.{key}", value)
    writer.add_float32(f"{ARCH}.attention.layer_norm_rms_epsilon", config.norm_eps)
    writer.add_float32(f"{ARCH}.rope.freq_base", config.rope_theta)
    writer.add_array(f"{ARCH}.attention.recurrent_layers", config.recurrent_layers)


def add_spikes(writer: gguf.GGUFWriter, plan: SpikePlan) -> None:
    """Add the `spikingbrain.spike.*` keys (docs/gguf.md)."""
    for key, value in plan.keys().items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)


class _Weights:
    """Reads tensors of a checkpoint and encodes them."""

    def __init__(self, source: Checkpoint, table: Mapping[str, TensorSpec]) -> None:
        self._source = source
        self._table = table
        self.codes = CodeStore()

    def data(self, tensor: PlannedTensor, advance: Advance) -> Iterator[np.ndarray]:
        """Encoded bytes of a tensor as uint8 chunks; refuses NaN and infinity.

        A second thread reads and encodes the next chunk while the caller writes this one.
        """
        chunks = self._encoded(tensor)
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(next, chunks, None)
            while (chunk := pending.result()) is not None:
                pending = pool.submit(next, chunks, None)
                yield chunk[1]
                advance(chunk[0])

    def _encoder(self, tensor: PlannedTensor) -> tuple[Encoder, int]:
        """The function that encodes values as bytes, and a divisor of the number of values that it takes."""
        scales = self._table[tensor.source].scales
        if scales is None:
            block, _ = gguf.GGML_QUANT_SIZES[tensor.qtype]
            return encoder(tensor.qtype.name.lower()), block
        values = self._source.read(scales).reshape(-1)
        return self.codes.encoder(tensor.name, tensor.qtype, values), SCALE_GROUP

    def _encoded(self, tensor: PlannedTensor) -> Iterator[tuple[int, np.ndarray]]:
        """Number of bytes read and encoded bytes, by chunk; a chunk is overwritten two chunks later."""
        scratch = np.empty(_CHUNK_BYTES, np.uint8)
        encode, multiple = self._encoder(tensor)
        done = 0
        for values in self._source.chunks(tensor.source, _CHUNK_BYTES, multiple=multiple, buffers=2):
            if not is_finite(values, scratch):
                first = done + int(np.argmin(np.isfinite(to_float32(values))))
                problem, hint = "holds NaN or infinity", "fetch or train the checkpoint again"
                raise _value_error(self._source, tensor, first, problem, hint)
            encoded = encode(values)
            if encoded is None:
                largest = done + int(np.argmax(np.abs(to_float32(values))))
                problem = f"exceeds the range of {tensor.qtype.name}"
                raise _value_error(self._source, tensor, largest, problem, "use --outtype bf16 or f32")
            yield values.nbytes, encoded
            done += values.size


def _value_error(
    source: Checkpoint, tensor: PlannedTensor, index: int, message: str, hint: str
) -> CheckpointError:
    value = float(source.read(tensor.source).reshape(-1)[index])
    return source.value_error(tensor.source, index, value, message, hint)
