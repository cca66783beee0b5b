"""Llama- and Qwen2-shaped base models: Hugging Face checkpoints and GGUFs under one set of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sb_edge.arch.config import PositiveInt, read_config_json
from sb_edge.convert.checkpoint.folder import read_tensor_table
from sb_edge.convert.checkpoint.safetensors_file import TensorInfo, read_tensor
from sb_edge.convert.vocab.export import copy_tokenizer, write_tokenizer
from sb_edge.gguf.floats import to_float32
from sb_edge.gguf.reader import GgufHeader, read_header
from sb_edge.gguf.values import tensor_values
from sb_edge.util.errors import CheckpointError, ConfigError, GgufError
from sb_edge.util.hashes import sha256_of, sha256_of_bytes
from sb_edge.util.validation import first_problem

BASE_ARCHITECTURES = ("llama", "qwen2")

_LAYER_NAMES = {
    "attn_norm.weight": ("input_layernorm.weight", "attn_norm.weight"),
    "mlp_norm.weight": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "mlp.gate_proj.weight": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "mlp.up_proj.weight": ("mlp.up_proj.weight", "ffn_up.weight"),
    "mlp.down_proj.weight": ("mlp.down_proj.weight", "ffn_down.weight"),
    "attn.o_proj.weight": ("self_attn.o_proj.weight", "attn_output.weight"),
    "attn.q_proj.weight": ("self_attn.q_proj.weight", "attn_q.weight"),
    "attn.k_proj.weight": ("self_attn.k_proj.weight", "attn_k.weight"),
    "attn.v_proj.weight": ("self_attn.v_proj.weight", "attn_v.weight"),
    "attn.q_proj.bias": ("self_attn.q_proj.bias", "attn_q.bias"),
    "attn.k_proj.bias": ("self_attn.k_proj.bias", "attn_k.bias"),
    "attn.v_proj.bias": ("self_attn.v_proj.bias", "attn_v.bias"),
}
"""Names of a layer's tensor by SpikingBrain's name: (Hugging Face's, GGUF's)."""

_GLOBAL_NAMES = {
    "model.embeddings.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "model.norm.weight": ("model.norm.weight", "output_norm.weight"),
    "lm_head.weight": ("lm_head.weight", "output.weight"),
}


class BaseShape(BaseModel):
    """The base's configuration, as far as a transplant uses it."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    rope_theta: float
    norm_eps: float
    tie_word_embeddings: bool
    rope_scaling: bool
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


@dataclass(frozen=True)
class _Names:
    """One of the two naming schemes: its column in the tables above and its prefix of a layer."""

    column: int
    layer: str

    def of(self, name: str) -> str:
        if name in _GLOBAL_NAMES:
            return _GLOBAL_NAMES[name][self.column]
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        return self.layer.format(number) + _LAYER_NAMES[rest][self.column]

    def all(self, shape: BaseShape) -> set[str]:
        layers = range(shape.num_hidden_layers)
        names = {pair[self.column] for pair in _GLOBAL_NAMES.values()}
        return names | {
            self.layer.format(n) + pair[self.column] for n in layers for pair in _LAYER_NAMES.values()
        }


class BaseModelReader(ABC):
    """A base model, read one tensor at a time under SpikingBrain's names."""

    def __init__(self, path: Path, shape: BaseShape, names: _Names, stored: Mapping[str, Any]) -> None:
        self.path = path
        self.shape = shape
        self._names = names
        self._stored = stored
        self._refuse_unknown()

    def _refuse_unknown(self) -> None:
        known = self._names.all(self.shape) | self._ignored()
        unknown = [name for name in self._stored if name not in known]
        if unknown:
            raise CheckpointError(
                "is not a tensor of Llama- or Qwen2-shaped models",
                path=self.path,
                item=unknown[0],
                hint="only such models can be transplanted",
            )

    def _ignored(self) -> set[str]:
        return set()

    def has(self, name: str) -> bool:
        """True if the base has the tensor that SpikingBrain names `name`."""
        return self._names.of(name) in self._stored

    def read(self, name: str, expected: tuple[int, ...]) -> np.ndarray:
        """Read a tensor as float32, with rows of q and k in half-split ("NeoX") rotary order.

        Raises:
            CheckpointError: the tensor is missing or its shape is not `expected`.
        """
        stored = self._names.of(name)
        if stored not in self._stored:
            raise CheckpointError("a tensor is missing", path=self.path, item=stored)
        found = tuple(self._stored[stored].shape)
        if found != expected:
            raise CheckpointError(
                "a tensor has another shape",
                path=self.path,
                item=stored,
                found=list(found),
                expected=list(expected),
            )
        return self._load(name, stored)

    @abstractmethod
    def _load(self, name: str, stored: str) -> np.ndarray: ...

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer to `folder` as Hugging Face files."""


class HuggingFaceBase(BaseModelReader):
    """A `LlamaForCausalLM` or `Qwen2ForCausalLM` checkpoint folder."""

    _stored: dict[str, TensorInfo]

    def __init__(self, folder: Path) -> None:
        document = _read_config(folder / "config.json")
        super().__init__(
            folder,
            _shape_of_config(document, folder / "config.json"),
            _Names(0, "model.layers.{}."),
            read_tensor_table(folder),
        )

    def _ignored(self) -> set[str]:
        # Old versions of transformers stored it; it follows from the config.
        return {
            f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(self.shape.num_hidden_layers)
        }

    def _load(self, name: str, stored: str) -> np.ndarray:
        return to_float32(read_tensor(self._stored[stored]))

    def write_tokenizer(self, folder: Path) -> None:
        copy_tokenizer(self.path, folder)


class GgufBase(BaseModelReader):
    """A GGUF of architecture `llama` or `qwen2`, quantized or not."""

    def __init__(self, path: Path) -> None:
        self._header = read_header(path)
        super().__init__(
            path,
            _shape_of_gguf(self._header, path),
            _Names(1, "blk.{}."),
            {tensor.name: tensor for tensor in self._header.tensors},
        )

    def _ignored(self) -> set[str]:
        # Llama 3's scaled rotary frequencies; `rope_scaling` reports them.
        return {"rope_freqs.weight"}

    def _load(self, name: str, stored: str) -> np.ndarray:
        tensor = self._stored[stored]
        values = tensor_values(tensor)
        if self._header.arch == "llama" and ".attn.q_proj." in name:
            return _to_half_split(values, self.shape.num_attention_heads)
        if self._header.arch == "llama" and ".attn.k_proj." in name:
            return _to_half_split(values, self.shape.num_key_value_heads)
        return values

    def write_tokenizer(self, folder: Path) -> None:
        write_tokenizer(self._header, self.path, folder)


def open_base(path: Path) -> BaseModelReader:
    """Open a base model: a checkpoint folder or a GGUF.

    Raises:
        CheckpointError, ConfigError, GgufError: not found, damaged, or of another architecture.
    """
    if path.is_dir():
        return HuggingFaceBase(path)
    if not path.exists():
        raise CheckpointError("not found", path=path, hint="give a checkpoint folder or a GGUF")
    return GgufBase(path)


def fingerprint(path: Path) -> str:
    """SHA-256 of a GGUF, or of names and contents of a folder's config.json and safetensors files."""
    if path.is_file():
        return sha256_of(path)
    files = sorted([path / "config.json", *path.glob("*.safetensors*")])
    return sha256_of_bytes(*(f"{file.name} {sha256_of(file)}\n".encode() for file in files))


def _to_half_split(values: np.ndarray, n_head: int) -> np.ndarray:
    """Undo the row order of llama GGUFs for interleaved rotary embedding. values: [H*d, ...]."""
    half = values.shape[0] // n_head // 2
    return values.reshape(n_head, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _read_config(path: Path) -> dict[str, Any]:
    document = read_config_json(path)
    if document.get("model_type") not in BASE_ARCHITECTURES:
        raise ConfigError(
            "cannot be transplanted",
            path=path,
            item="model_type",
            found=repr(document.get("model_type")),
            expected=" or ".join(BASE_ARCHITECTURES),
        )
    return document


def _shape_of_config(document: dict[str, Any], path: Path) -> BaseShape:
    if document.get("hidden_act", "silu") != "silu":
        raise ConfigError(
            "is not supported",
            path=path,
            item="hidden_act",
            found=repr(document["hidden_act"]),
            expected="'silu'",
        )
    values = {
        "tie_word_embeddings": False,
        "num_key_value_heads": document.get("num_attention_heads"),
        **{key: value for key, value in document.items() if value is not None},
        "norm_eps": document.get("rms_norm_eps"),
        "rope_theta": float(document.get("rope_theta") or 10000.0),
        "rope_scaling": bool(document.get("rope_scaling")),
    }
    shape = _validated(values, path, ConfigError)
    head_dim = document.get("head_dim")
    if head_dim is not None and head_dim * shape.num_attention_heads != shape.hidden_size:
        raise ConfigError(
            "is not hidden_size / num_attention_heads, which is not supported",
            path=path,
            item="head_dim",
            found=head_dim,
        )
    return shape


def _shape_of_gguf(header: GgufHeader, path: Path) -> BaseShape:
    if header.arch not in BASE_ARCHITECTURES:
        raise GgufError(
            "cannot be transplanted",
            path=path,
            item="general.architecture",
            found=repr(header.arch),
            expected=" or ".join(BASE_ARCHITECTURES),
        )
    keys = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "max_position_embeddings": "context_length",
        "rope_theta": "rope.freq_base",
        "norm_eps": "attention.layer_norm_rms_epsilon",
    }
    names = {tensor.name: tensor for tensor in header.tensors}
    values = {ours: header.metadata.get(f"{header.arch}.{theirs}") for ours, theirs in keys.items()}
    values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
    values["rope_theta"] = values["rope_theta"] or 10000.0
    values["tie_word_embeddings"] = "output.weight" not in names
    values["rope_scaling"] = (
        "rope_freqs.weight" in names or f"{header.arch}.rope.scaling.type" in header.metadata
    )
    embeddings = names.get("token_embd.weight")
    values["vocab_size"] = embeddings.shape[0] if embeddings else None
    for key in ("bos_token_id", "eos_token_id"):
        values[key] = header.metadata.get(f"tokenizer.ggml.{key}")
    return _validated(values, path, GgufError)


def _validated(values: dict[str, Any], path: Path, kind: type[ConfigError] | type[GgufError]) -> BaseShape:
    try:
        return BaseShape.model_validate(values)
    except ValidationError as error:
        key, message, found, _ = first_problem(error)
        raise kind(message, path=path, item=key, found=found) from None
