"""A loaded GGUF: its weights, metadata and vocabulary."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sb_edge.arch.layer_map import recurrent_layers
from sb_edge.arch.model_check import read_model
from sb_edge.arch.model_spikes import effective_plan
from sb_edge.arch.sparse_plan import SPARSE_OVERRIDE_KEY, check_sparse, sparse_values
from sb_edge.arch.spike_plan import OVERRIDE_KEY, PROJECTIONS, require_k
from sb_edge.gguf.reader import GgufHeader
from sb_edge.memory.check import require_memory_for_weights
from sb_edge.memory.forecast import not_loaded, require_loadable
from sb_edge.runtime.binding import clear_log, last_problem, library, recent_log, typed
from sb_edge.runtime.tokenization import SPACE_PREFIX_KEY, Tokenization, is_sentencepiece
from sb_edge.util.errors import InferenceError, SpikeError
from sb_edge.util.progress import note

_VALUE_BYTES = 1 << 20


class Model:
    """Weights and vocabulary, shared by sessions.

    Args:
        path: the GGUF, or the first file of a split one.
        header: what `read_model` made of the file, where it has been called already.
        use_mmap: map the weights instead of reading them.
        use_mlock: keep the weights in physical memory.
        vocab_only: load the vocabulary alone.
        spikes: None: as the file says; 0: none at all; another number: the k of every coded projection, and
            of all projections of a file that codes none.

        is_checked: memory has been checked by the caller.

    Raises:
        GgufError: not a sound GGUF, or one that the engine cannot run.
        SpikeError: `spikes` is not a valid k, or the architecture has no spikes.
        OutOfMemoryForecast: the weights will not fit in memory; nothing has been loaded.
        EngineError: the engine is not built.
    """

    def __init__(
        self,
        path: Path,
        *,
        header: GgufHeader | None = None,
        use_mmap: bool = True,
        use_mlock: bool = False,
        vocab_only: bool = False,
        spikes: float | None = None,
        sparse: bool = True,
        is_checked: bool = False,
    ) -> None:
        self.path = Path(path)
        self.header = read_model(self.path) if header is None else header
        self.spike_plan = effective_plan(self.header, spikes)
        self.spikes = spikes
        plan = check_sparse(self.header)
        self.sparse_plan = plan if sparse else None
        if not vocab_only:
            for projection in self.sparse_plan.projections if self.sparse_plan else ():
                projection.read_zones()
            if not is_checked:
                require_memory_for_weights(self.header, spikes, sparse=sparse)
        if self.header.tensors or not vocab_only:  # the engine loads a vocabulary alone as nothing else
            require_loadable(self.header)
        lib = library()
        params = lib.llama_model_default_params()
        params.load_mode = _load_mode(lib, use_mmap, use_mlock)
        params.vocab_only = vocab_only
        # `Tokenization` puts the space of a SentencePiece vocabulary where it belongs.
        prefix = False if is_sentencepiece(self.header) else None
        overrides = _overrides(
            lib,
            {
                OVERRIDE_KEY: spikes,
                SPARSE_OVERRIDE_KEY: None if sparse else 0.0,
                SPACE_PREFIX_KEY: prefix,
            },
        )
        params.kv_overrides = overrides
        clear_log()
        self._handle = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._handle:
            raise not_loaded(self.path, last_problem() or f"architecture {self.header.arch!r}")
        if any("failed to mlock" in line for line in recent_log()):
            note(f"{self.path}: the weights are not kept in physical memory; raise the limit (ulimit -l)")

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights. Sessions on this model must be closed first."""
        if self._handle:
            library().llama_model_free(self._handle)
            self._handle = None
            self.__dict__.pop("tokenization", None)

    @property
    def handle(self) -> Any:
        """The engine's pointer.

        Raises:
            InferenceError: the model is closed; the engine would read freed memory.
        """
        if not self._handle:
            raise InferenceError("the model is closed", path=self.path)
        return self._handle

    @property
    def vocab(self) -> Any:
        """The engine's pointer to the vocabulary; errors as `handle`."""
        return library().llama_model_get_vocab(self.handle)

    def set_spike_k(self, layer: int, projection: str, k: float) -> None:
        """Give one projection another k, 0 to leave its input uncoded; sessions made from now on use it.

        Raises:
            SpikeError: no number that k can be, or no projection that was coded when the model was loaded.
        """
        if k != 0:
            require_k(k, f"k of {projection} in layer {layer}")
        arguments = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_float)
        change = typed(library()._lib, "llama_spikingbrain_set_spike_k", ctypes.c_bool, *arguments)
        if self.spike_plan is None or not change(self.handle, layer, projection.encode(), k):
            raise SpikeError("was not coded when the model was loaded", item=f"{projection} of layer {layer}")
        self.spike_plan = self.spike_plan.with_k(layer, projection, k, len(self.recurrent_layers))

    @cached_property
    def recurrent_layers(self) -> list[bool]:
        """Per layer: True for GLA, False for SWA; as `sb_edge.arch.layer_map.recurrent_layers`."""
        return recurrent_layers(self.header)

    @cached_property
    def spike_widths(self) -> dict[str, int]:
        """Channels of each projection's input."""
        hidden = self.header.integer("embedding_length")
        heads = self.header.integer("attention.head_count")
        head_dim = self.header.integer("attention.key_length", hidden // heads)
        others = {
            "attn_output": heads * head_dim,
            "ffn_down": self.header.integer("feed_forward_length"),
        }
        return {name: others.get(name, hidden) for name in PROJECTIONS}

    @property
    def arch(self) -> str:
        """`general.architecture`."""
        return self.header.arch

    @property
    def n_vocab(self) -> int:
        return int(library().llama_vocab_n_tokens(self.vocab))

    @property
    def has_vocab(self) -> bool:
        """False for a GGUF with `tokenizer.ggml.model = no_vocab`: it takes token ids only."""
        lib = library()
        return bool(lib.llama_vocab_type(self.vocab) != lib.LLAMA_VOCAB_TYPE_NONE)

    @property
    def n_params(self) -> int:
        """Number of weights; those of a sparse layout are there twice and count once."""
        return int(library().llama_model_n_params(self.handle)) - sparse_values(self.header)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return int(library().llama_model_size(self.handle))

    @property
    def n_ctx_train(self) -> int:
        """`context_length`: the longest context that the model was made for."""
        return int(library().llama_model_n_ctx_train(self.handle))

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, as it stands in the file."""
        template = library().llama_model_chat_template(self.handle, None)
        return None if template is None else template.decode("utf-8", "replace")

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Every GGUF key with a printable value; long arrays as the engine abbreviates them."""
        lib = library()
        buffer = ctypes.create_string_buffer(_VALUE_BYTES)
        values = {}
        for index in range(lib.llama_model_meta_count(self.handle)):
            lib.llama_model_meta_key_by_index(self.handle, index, buffer, _VALUE_BYTES)
            key = buffer.value.decode("utf-8", "replace")
            lib.llama_model_meta_val_str_by_index(self.handle, index, buffer, _VALUE_BYTES)
            values[key] = buffer.value.decode("utf-8", "replace")
        return values

    def require_vocab(self) -> None:
        """Refuse a model without a vocabulary where text is needed.

        Raises:
            InferenceError: the GGUF has no vocabulary.
        """
        require_vocab(self.header)

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = True, *, after: int | None = None
    ) -> list[int]:
        """Text to token ids; never with EOS, because every text here is there to be continued.

        Args:
            text: any Unicode text.
            add_special: begin with BOS where the vocabulary asks for it.
            parse_special: read special tokens written out in the text as themselves.
            after: the token that the text follows, so that neither BOS nor, where that token is text, the
                space of a SentencePiece vocabulary stands before it; None: the text is the first.

        Raises:
            InferenceError: no vocabulary, or a text that UTF-8 cannot hold.
        """
        self.require_vocab()
        tokens = self.tokenization.encode(text, parse_special=parse_special, after=after)
        return [*(self.first_tokens if add_special and after is None else []), *tokens]

    def tokenize_marked(self, text: str, *, after: int | None = None) -> list[int]:
        """Token ids of a chat that `ChatTemplate` rendered; arguments and errors as `tokenize`."""
        tokens = self.tokenization.encode(text, parse_special=True, after=after, is_marked=True)
        return [*(self.first_tokens if after is None else []), *tokens]

    @property
    def first_tokens(self) -> list[int]:
        """The tokens that every text begins with: BOS where the vocabulary asks for it."""
        bos = self.special_token("bos")
        return [bos] if self.adds_bos and bos is not None else []

    @cached_property
    def tokenization(self) -> Tokenization:
        """How text becomes tokens."""
        return Tokenization(self.vocab, self.header)

    def token_piece(self, token: int) -> bytes:
        """The bytes that one token stands for; special tokens give nothing. Not always whole characters."""
        lib = library()
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Token ids to bytes (UTF-8 where the tokens end on a character)."""
        return b"".join(self.token_piece(token) for token in tokens)

    def token_text(self, token: int) -> str:
        """A token as it is written in the vocabulary, special tokens included."""
        text = library().llama_vocab_get_text(self.vocab, token)
        return "" if text is None else text.decode("utf-8", "replace")

    def special_token(self, kind: str) -> int | None:
        """The id of the "bos", "eos", "eot", "unknown" or "padding" token, None if there is none."""
        return self.tokenization.special(kind)

    @property
    def adds_bos(self) -> bool:
        """Whether the vocabulary asks for a BOS token before a text."""
        return bool(library().llama_vocab_get_add_bos(self.vocab))

    def is_end_of_generation(self, token: int) -> bool:
        """Whether a token ends an answer (EOS, EOT and their kin)."""
        return self.tokenization.is_end(token)


def require_vocab(header: GgufHeader) -> None:
    """Refuse a GGUF without a vocabulary where text is needed.

    Raises:
        InferenceError: it has none.
    """
    if header.metadata.get("tokenizer.ggml.model") in ("no_vocab", "none"):
        raise InferenceError(
            "has no vocabulary, so it cannot read or write text",
            path=header.files[0],
            item="tokenizer.ggml.model",
            hint="convert a checkpoint that has its tokenizer files",
        )


def _load_mode(lib: Any, use_mmap: bool, use_mlock: bool) -> int:
    """llama.cpp's number of a way to load."""
    if use_mlock:
        return int(lib.LLAMA_LOAD_MODE_MMAP_MLOCK if use_mmap else lib.LLAMA_LOAD_MODE_MLOCK)
    return int(lib.LLAMA_LOAD_MODE_MMAP if use_mmap else lib.LLAMA_LOAD_MODE_NONE)


def _overrides(lib: Any, values: Mapping[str, float | bool | None]) -> Any:
    """llama.cpp's list of overridden keys, those that are not None, ended by an empty key; or None."""
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return None
    overrides = (lib.llama_model_kv_override * (len(given) + 1))()
    for override, (key, value) in zip(overrides, given.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, bool):
            override.tag, override.value.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        else:
            override.tag, override.value.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, float(value)
    return overrides
