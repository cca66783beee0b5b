"""The configuration of a SpikingBrain checkpoint (config.json), checked, and presets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sb_edge.util.errors import ConfigError
from sb_edge.util.json_files import read_json_object
from sb_edge.util.validation import first_problem

GATE_LOGIT_NORMALIZER = 16
"""log a = logsigmoid(gate logits) / 16 (report, section 3; the public release's constant)."""

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


_EXPERT_KEYS = {"num_experts", "num_experts_per_tok", "num_shared_experts", "moe_dense_layers"}


class SpikingBrainConfig(BaseModel):
    """The keys of a public `gla_swa` config.json that affect computation.

    Other keys (dropout, initializer range, ...) are ignored. `attn_layers` lists the SWA layers; if it is
    absent, the odd layers are SWA. All other layers are GLA.

    The keys from `num_experts` on belong to this project, because no such checkpoint is public. With
    experts, the FFN of every layer that `moe_dense_layers` does not list is a mixture of experts.
    `attn_heads` lists, for every layer, the key/value heads of a GLA layer that have sliding-window
    attention, each with its query heads (an experiment).
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model_type: Literal["gla_swa"] = "gla_swa"
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    intermediate_size: PositiveInt
    hidden_act: Literal["swish", "silu"] = "swish"
    max_position_embeddings: PositiveInt
    sliding_window: PositiveInt
    rope_theta: Annotated[float, Field(gt=0)]
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    tie_word_embeddings: bool = False
    use_short_conv: Literal[False] = False
    rope_scaling: None = None
    attn_layers: list[Annotated[int, Field(ge=0)]] | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    num_experts: Annotated[int, Field(ge=0, le=4096)] = 0
    num_experts_per_tok: PositiveInt = 1
    num_shared_experts: PositiveInt = 1
    moe_dense_layers: list[Annotated[int, Field(ge=0)]] = []
    attn_heads: list[list[Annotated[int, Field(ge=0)]]] | None = None

    @model_validator(mode="after")
    def _shapes_agree(self) -> SpikingBrainConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size: the head size {self.head_dim} is odd, rotary embedding needs it even"
            )
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok: {self.num_experts_per_tok} of {self.num_experts} experts")
        if any(layer >= self.num_hidden_layers for layer in self.moe_dense_layers):
            raise ValueError(
                f"moe_dense_layers: layer {max(self.moe_dense_layers)} of a model with "
                f"{self.num_hidden_layers} layers"
            )
        if self.attn_layers is not None:
            beyond = [layer for layer in self.attn_layers if layer >= self.num_hidden_layers]
            if beyond:
                raise ValueError(
                    f"attn_layers: layer {beyond[0]} of a model with {self.num_hidden_layers} layers"
                )
            if len(set(self.attn_layers)) != len(self.attn_layers):
                raise ValueError("attn_layers: a layer is listed twice")
        if self.attn_heads is not None:
            self._require_heads(self.attn_heads)
        return self

    def _require_heads(self, attn_heads: list[list[int]]) -> None:
        if len(attn_heads) != self.num_hidden_layers:
            raise ValueError(f"attn_heads: {len(attn_heads)} lists for {self.num_hidden_layers} layers")
        for layer, (heads, recurrent) in enumerate(zip(attn_heads, self.recurrent_layers, strict=True)):
            fits = len(set(heads)) == len(heads) < self.num_key_value_heads
            if not fits or max(heads, default=0) >= self.num_key_value_heads or (heads and not recurrent):
                raise ValueError(
                    f"attn_heads: {heads} of layer {layer} are not some of the "
                    f"{self.num_key_value_heads} key/value heads of a GLA layer"
                )

    @property
    def head_dim(self) -> int:
        """d, the size of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_dim(self) -> int:
        """Hkv * d."""
        return self.num_key_value_heads * self.head_dim

    @property
    def swa_layers(self) -> list[int]:
        """The layers with sliding-window attention, ascending."""
        if self.attn_layers is None:
            return list(range(1, self.num_hidden_layers, 2))
        return sorted(self.attn_layers)

    @property
    def recurrent_layers(self) -> list[bool]:
        """Per layer: True for GLA, False for SWA (GGUF's `attention.recurrent_layers`)."""
        swa = set(self.swa_layers)
        return [layer not in swa for layer in range(self.num_hidden_layers)]

    @property
    def moe_layers(self) -> list[bool]:
        """Per layer: True where the FFN is a mixture of experts."""
        dense = set(self.moe_dense_layers)
        return [bool(self.num_experts) and layer not in dense for layer in range(self.num_hidden_layers)]

    def to_json(self) -> dict[str, Any]:
        """Content of config.json in the public layout."""
        document: dict[str, Any] = {"architectures": ["GLAswaForCausalLM"]}
        experts = set() if self.num_experts else _EXPERT_KEYS
        document.update(self.model_dump(exclude={"rope_scaling", *experts}, exclude_none=True))
        document["attn_layers"] = self.swa_layers
        return document


PRESETS = {
    "7b": SpikingBrainConfig(
        vocab_size=152064,
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        max_position_embeddings=131072,
        sliding_window=4096,
        rope_theta=1e6,
        norm_eps=1e-6,
        bos_token_id=151643,
        eos_token_id=151643,
    ),
    "1b": SpikingBrainConfig(
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        max_position_embeddings=131072,
        sliding_window=4096,
        rope_theta=5e5,
        norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "tiny": SpikingBrainConfig(
        vocab_size=256,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=2048,
        sliding_window=16,
        rope_theta=1e4,
        norm_eps=1e-6,
        bos_token_id=0,
        eos_token_id=0,
    ),
}
"""Presets of `sb-edge init`: the published 7B, this project's 1B (the shape of Llama-3.2-1B with the
attention pattern of the 7B), and a tiny model for tests."""


def read_config_json(path: Path) -> dict[str, Any]:
    """Read a config.json of any model.

    Raises:
        ConfigError: not found, not valid JSON or not an object.
    """
    return read_json_object(
        path, ConfigError, absent="give the folder that holds config.json", hint="fetch this file again"
    )


def rotary_settings(document: Mapping[str, Any], path: Path) -> tuple[Any, bool]:
    """Base of the rotary frequencies and whether they are scaled, from any model's config.json.

    transformers 5 writes `rope_parameters`, which hold the base as well; earlier versions `rope_theta` and
    `rope_scaling`. As in transformers, `rope_scaling` precedes `rope_parameters`, and the base inside either
    precedes `rope_theta`.

    Args:
        document: content of config.json.
        path: the config.json, for messages.

    Returns:
        The base as it stands in the file (not checked; None: not given), and True for any scaling.

    Raises:
        ConfigError: damaged, one rotary embedding per kind of layer, or a partial one.
    """
    key = "rope_scaling" if document.get("rope_scaling") else "rope_parameters"
    values = document.get(key) or {}
    if not isinstance(values, dict):
        raise ConfigError("is not a JSON object", path=path, item=key, found=repr(values)[:80])
    if any(isinstance(value, dict) for value in values.values()):
        raise ConfigError(
            "rotary embeddings that differ between kinds of layers are not supported",
            path=path,
            item=key,
            found=", ".join(map(str, values))[:80],
        )
    partial = values.get("partial_rotary_factor", document.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise ConfigError(
            "rotary embedding of a part of each head is not supported",
            path=path,
            item="partial_rotary_factor",
            found=repr(partial)[:80],
            expected=1,
        )
    kind = values.get("rope_type", values.get("type", "linear" if "factor" in values else "default"))
    return values.get("rope_theta", document.get("rope_theta")), kind != "default"


def load_config(path: Path) -> SpikingBrainConfig:
    """Read and check a checkpoint's config.json.

    Args:
        path: the config.json.

    Raises:
        ConfigError: not found, not JSON, another model type, or a missing, wrong or unsupported value.
    """
    document = read_config_json(path)
    model_type = document.get("model_type")
    if model_type != "gla_swa":
        raise ConfigError(
            "unknown architecture",
            path=path,
            item="model_type",
            found=repr(model_type),
            expected="'gla_swa'",
            hint="for a Llama- or Qwen2-shaped model, use `sb-edge transplant` first",
        )
    if document.get("use_short_conv"):
        raise ConfigError(
            "short convolutions are not supported",
            path=path,
            item="use_short_conv",
            found="true",
            expected="false, as in every public release",
            hint="convert a checkpoint without them",
        )
    theta, is_scaled = rotary_settings(document, path)
    if is_scaled:
        raise ConfigError("scaled rotary frequencies are not supported", path=path, item="rope_scaling")
    rotary = {"rope_scaling": None} | ({} if theta is None else {"rope_theta": theta})
    try:
        return SpikingBrainConfig.model_validate(document | rotary)
    except ValidationError as error:
        key, message, found, line = first_problem(error)
        if not key:
            key, _, message = line.partition(": ")
            found = repr(document.get(key))
        raise ConfigError(message, path=path, item=key, found=found, hint="correct this key") from None
