"""A SpikingBrain checkpoint to GGUF, streaming: memory use does not depend on the model's size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as QType

from sb_edge.config import ARCH, SpikingBrainConfig
from sb_edge.convert.checkpoint import Checkpoint
from sb_edge.convert.gguf_writer import PlannedTensor, file_size, planned_files, write_gguf
from sb_edge.convert.metadata import default_file_name, load_metadata
from sb_edge.convert.tensors import TensorLayout, TensorSpec, account_for_tensors, is_finite
from sb_edge.convert.vocab import add_vocabulary, load_vocabulary
from sb_edge.errors import CheckpointError
from sb_edge.files import require_free_space
from sb_edge.progress import Advance, progress_bar

OUTTYPES = {"f32": QType.F32, "f16": QType.F16, "bf16": QType.BF16, "q8_0": QType.Q8_0}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_CHUNK_BYTES = 1 << 20  # fits the second-level cache together with what it becomes
_HEADER_ALLOWANCE = 64 << 20  # keys, tokens and padding, when asking for free space


@dataclass(frozen=True)
class ConversionReport:
    """What was written, or would be.

    Attributes:
        files: the GGUF, or its parts.
        outtype: the type of the matrices; never "auto".
        tensors: every tensor, in the order of the file.
        nbytes: size of the files; in a dry run, of the tensors.
        seconds: how long it took, synchronisation with the disk included.
        vocabulary: "gpt2", "llama" or "no_vocab", as in `tokenizer.ggml.model`.
    """

    files: tuple[Path, ...]
    outtype: str
    tensors: tuple[PlannedTensor, ...]
    nbytes: int
    seconds: float
    vocabulary: str


def convert_checkpoint(
    checkpoint: Path,
    outfile: Path | None,
    *,
    outtype: str = "auto",
    metadata_file: Path | None = None,
    split_max_size: int = 0,
    dry_run: bool = False,
) -> ConversionReport:
    """Convert a checkpoint in the public layout to GGUF.

    Args:
        checkpoint: the folder.
        outfile: a file name, in which `{ftype}` stands for the type; a folder; or None for the checkpoint's own.
            In a folder the file is named by GGUF's convention.
        outtype: "f32", "f16", "bf16", "q8_0", or "auto": bf16 if the first 16-bit matrix is bf16, else f16 (the
            rule of llama.cpp's converter). Norms, biases and gates are always F32; matrices whose rows are no
            multiple of 32 stay F16 under "q8_0".
        metadata_file: JSON of `general.*` keys that override the model card.
        split_max_size: bytes of tensor data a part; 0: one file.
        dry_run: check everything but the values, plan, write nothing.

    Raises:
        CheckpointError: the checkpoint is damaged, of an unknown layout, or holds NaN or infinity.
        OutputError: the output cannot be written.
    """
    start = time.perf_counter()
    source = Checkpoint.open(checkpoint)
    layout, table = account_for_tensors(source)
    vocabulary = load_vocabulary(source.folder, source.config)
    outtype = _guess_outtype(source) if outtype == "auto" else outtype
    tensors = [
        PlannedTensor(spec.gguf_name, name, spec.shape, _qtype(spec, outtype)) for name, spec in table.items()
    ]
    metadata = load_metadata(source.folder, metadata_file, sum(prod(tensor.shape) for tensor in tensors))
    path = _output_path(source.folder, outfile, default_file_name(metadata, outtype.upper()), outtype)
    kind = vocabulary.model if vocabulary else "no_vocab"
    nbytes = sum(tensor.nbytes for tensor in tensors)
    if dry_run:
        files = tuple(planned_files(path, tensors, split_max_size))
        return ConversionReport(files, outtype, tuple(tensors), nbytes, time.perf_counter() - start, kind)

    def set_metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_type(gguf.GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        add_hyperparameters(writer, source.config, layout)
        writer.add_file_type(_FILE_TYPES[outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_vocabulary(writer, vocabulary)

    if path.parent.is_dir():
        require_free_space(path.parent, nbytes + _HEADER_ALLOWANCE, "the GGUF")
    with progress_bar("converting", sum(source.info(name).nbytes for name in table), unit="bytes") as advance:
        files = tuple(
            write_gguf(
                path,
                ARCH,
                tensors,
                set_metadata,
                lambda tensor: _tensor_data(source, tensor, advance),
                split_max_size=split_max_size,
            )
        )
    seconds = time.perf_counter() - start
    return ConversionReport(files, outtype, tuple(tensors), file_size(files), seconds, kind)


def _guess_outtype(source: Checkpoint) -> str:
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
    """Add the `spikingbrain.*` keys (docs/gguf.md) that the engine builds its graph from."""
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


def _tensor_data(source: Checkpoint, tensor: PlannedTensor, advance: Advance) -> Iterator[np.ndarray]:
    """A tensor's bytes in the file, in uint8 pieces; refuses NaN and infinity on the way."""
    scratch = np.empty(_CHUNK_BYTES, np.uint8)
    encode = encoder(tensor.qtype)
    done = 0
    for values in source.chunks(tensor.source, _CHUNK_BYTES, multiple=gguf.GGML_QUANT_SIZES[tensor.qtype][0]):
        if not is_finite(values, scratch):
            first = done + int(np.argmin(np.isfinite(values.astype(np.float32))))
            raise _value_error(
                source, tensor, first, "holds NaN or infinity", "fetch or train the checkpoint again"
            )
        encoded = encode(values)
        if encoded is None:
            largest = int(np.argmax(np.abs(values.astype(np.float32))))
            raise _value_error(
                source,
                tensor,
                done + largest,
                f"exceeds {tensor.qtype.name}'s range",
                "use --outtype bf16 or f32",
            )
        yield encoded
        done += values.size
        advance(values.nbytes)


def _value_error(
    source: Checkpoint, tensor: PlannedTensor, index: int, message: str, hint: str
) -> CheckpointError:
    place = ", ".join(str(int(i)) for i in np.unravel_index(index, tensor.shape))
    value = source.read(tensor.source).reshape(-1)[index]
    return CheckpointError(
        message,
        path=source.info(tensor.source).file,
        item=tensor.source,
        found=f"{float(value)} at [{place}]",
        hint=hint,
    )


def encoder(qtype: QType) -> Callable[[np.ndarray], np.ndarray | None]:
    """A function from values to the bytes (uint8) that stand for them in a GGUF.

    It takes one-dimensional float32, float16 or bfloat16 values and returns None if a value exceeds the type's
    range.
    """
    return {QType.F32: _to_f32, QType.F16: _to_f16, QType.BF16: _to_bf16, QType.Q8_0: _to_q8_0}[qtype]


def _float32(values: np.ndarray) -> np.ndarray:
    if values.dtype == ml_dtypes.bfloat16:
        # bfloat16 is float32's upper half; shifting is an order of magnitude faster than ml_dtypes' cast
        return np.left_shift(values.view(np.uint16), np.uint32(16), dtype=np.uint32).view(np.float32)
    return values.astype(np.float32, copy=False)


def _to_f32(values: np.ndarray) -> np.ndarray:
    return _float32(values).view(np.uint8)


def _to_f16(values: np.ndarray) -> np.ndarray | None:
    if values.dtype == np.float16:
        return values.view(np.uint8)
    with np.errstate(over="ignore"):
        narrow = _float32(values).astype(np.float16)
    return narrow.view(np.uint8) if is_finite(narrow) else None


def _to_bf16(values: np.ndarray) -> np.ndarray | None:
    if values.dtype == ml_dtypes.bfloat16:
        return values.view(np.uint8)
    bits = _float32(values).view(np.uint32)
    # round half to even: add just under half of the dropped part, and one more if the kept part is odd
    rounded = np.right_shift(bits, np.uint32(16))
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    narrow = rounded.astype(np.uint16).view(ml_dtypes.bfloat16)
    return narrow.view(np.uint8) if is_finite(narrow) else None


def _to_q8_0(values: np.ndarray) -> np.ndarray | None:
    blocks: np.ndarray = gguf.quants.quantize(_float32(values).reshape(-1, 32), QType.Q8_0)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).reshape(-1)
    return blocks.reshape(-1) if is_finite(scales) else None
