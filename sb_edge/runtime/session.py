"""A context of the engine: KV cache, recurrent states and positions of one or more sequences."""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb_edge.arch.lora_check import check_lora
from sb_edge.memory.check import require_memory
from sb_edge.memory.forecast import (
    DEFAULT_UBATCH,
    FLASH_ATTN,
    EngineSettings,
    FlashChoice,
    no_context,
    uses_flash_attention,
)
from sb_edge.runtime.binding import (
    clear_log,
    ggml_base,
    kv_type,
    last_problem,
    library,
    recent_log,
)
from sb_edge.runtime.key_bias import note_large_key_biases
from sb_edge.runtime.model import Model
from sb_edge.runtime.state import SavedState, StateOwner, load_state, save_state
from sb_edge.system.cpu import MAX_THREADS, default_threads, fast_cpus, kept_on
from sb_edge.util.errors import InferenceError, StateError
from sb_edge.util.user_cache import remembered_sha256

__all__ = ["Model", "Session"]

_MEMORY_LINE = re.compile(r"(llama_kv_cache|llama_memory_recurrent).*: size = +([0-9.]+) MiB")

OnTensor = Callable[[str, np.ndarray], None]


class Session:
    """The state of decoding with a model.

    Args:
        model: stays open as long as this session.
        n_ctx: positions that every sequence may reach.
        n_batch: tokens handed to the engine at once; Ctrl-C is heard between two batches.
        n_ubatch: tokens computed at once.
        n_threads: None: as `default_threads`.
        n_seq_max: sequences held side by side.
        n_outputs: positions of a batch whose logits are kept; None: all of them. 1 saves the memory of the
            others where only the last logits are wanted.
        type_k, type_v: the KV cache's types, `KV_TYPES`.
        flash_attn: see `uses_flash_attention`.
        swa_full: keep the whole context in the cache of the windowed layers.
        kv_unified: one KV cache for all sequences.
        on_tensor: called with the name and the value, float32 or int8 [n_rows, width], of each graph tensor
            whose name matches `tensor_filter` ("l_out-N" is layer N's output).
        tensor_filter: a regular expression for the whole name.
        is_checked: memory has been checked by the caller.

    Attributes:
        revision: Number of changes so far; tells whether another text has been evaluated in between.

    Raises:
        InferenceError: the engine refuses these settings.
        OutOfMemoryForecast: the context will not fit in memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int = 512,
        n_ubatch: int = DEFAULT_UBATCH,
        n_threads: int | None = None,
        n_seq_max: int = 1,
        n_outputs: int | None = None,
        type_k: str = "f16",
        type_v: str = "f16",
        flash_attn: FlashChoice = "auto",
        swa_full: bool = False,
        kv_unified: bool = False,
        on_tensor: OnTensor | None = None,
        tensor_filter: str | None = None,
        is_checked: bool = False,
    ) -> None:
        lib = library()
        self.model = model
        self.revision = 0
        self.n_threads = default_threads() if n_threads is None else n_threads
        if not 1 <= self.n_threads <= MAX_THREADS:
            raise InferenceError(
                "impossible number of threads", found=self.n_threads, expected=f"1 to {MAX_THREADS}"
            )
        self._cpus = fast_cpus(self.n_threads)
        self.type_k, self.type_v = type_k, type_v
        self._loras: list[Path] = []
        self._callback_error: BaseException | None = None
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx * (1 if kv_unified else n_seq_max)
        params.n_batch = min(n_batch, params.n_ctx)
        params.n_ubatch = min(n_ubatch, params.n_batch)
        params.n_seq_max = n_seq_max
        params.n_outputs_max = max(n_outputs, n_seq_max) if n_outputs else 0
        params.n_threads = params.n_threads_batch = self.n_threads
        params.type_k, params.type_v = kv_type(type_k), kv_type(type_v)
        is_flash = uses_flash_attention(model.arch, flash_attn, type_k, type_v)
        params.flash_attn_type = FLASH_ATTN[flash_attn if is_flash else "off"]
        params.swa_full, params.kv_unified = swa_full, kv_unified
        # The engine keeps a pointer to the callback: it has to live as long as the context.
        self._on_eval = lib.ggml_backend_sched_eval_callback(self._tensor_callback(on_tensor, tensor_filter))
        if on_tensor is not None:
            params.cb_eval = self._on_eval
        max_outputs = min(n_outputs or params.n_batch, params.n_batch)
        if not is_checked:
            require_memory(
                model.header,
                params.n_ctx,
                EngineSettings(
                    type_k=type_k,
                    type_v=type_v,
                    n_seq_max=1 if kv_unified else n_seq_max,
                    n_ubatch=params.n_ubatch,
                    n_outputs=max_outputs,
                    flash_attn=flash_attn,
                    swa_full=swa_full,
                    spikes=model.spikes,
                    sparse=model.sparse_plan is not None,
                ),
                is_loaded=True,
            )
        note_large_key_biases(model.path, model.header, type_k)
        clear_log()
        self._handle = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise no_context(model.path, last_problem())
        self.kv_bytes, self.state_bytes = _memory_sizes(recent_log())
        self.n_ctx = int(lib.llama_n_ctx_seq(self.handle))
        self.n_batch = int(lib.llama_n_batch(self.handle))
        self.n_ubatch = int(lib.llama_n_ubatch(self.handle))
        self._max_outputs = max_outputs
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free caches and states; the model stays."""
        if self._handle:
            library().llama_batch_free(self._batch)
            library().llama_free(self._handle)
            self._handle = None

    @property
    def handle(self) -> Any:
        """The engine's pointer.

        Raises:
            InferenceError: the session is closed; the engine would read freed memory.
        """
        if not self._handle:
            raise InferenceError("the model is closed", path=self.model.path)
        return self._handle

    @property
    def _memory(self) -> Any:
        return library().llama_get_memory(self.handle)

    def apply_loras(self, paths: Sequence[Path]) -> None:
        """Apply LoRA adapters, each with scale 1; they stay until the model is closed.

        Raises:
            GgufError: not a GGUF, or not an adapter of this model.
            InferenceError: the engine refuses it.
        """
        if not paths:
            return
        lib = library()
        adapters = (lib.llama_adapter_lora_p_ctypes * len(paths))()
        for index, path in enumerate(paths):
            check_lora(path, self.model.header)
            clear_log()
            adapters[index] = lib.llama_adapter_lora_init(self.model.handle, os.fsencode(path))
            if not adapters[index]:
                raise InferenceError(
                    "is not a LoRA adapter of this model",
                    path=path,
                    found=last_problem(),
                    expected=f"an adapter GGUF for {self.model.path.name}",
                )
        self._loras = list(paths)
        scales = (ctypes.c_float * len(paths))(*[1.0] * len(paths))
        lib.llama_set_adapters_lora(self.handle, adapters, len(paths), scales)

    def position(self, seq_id: int = 0) -> int:
        """How many tokens a sequence has seen."""
        return int(library().llama_memory_seq_pos_max(self._memory, seq_id)) + 1

    def clear(self) -> None:
        """Forget every sequence."""
        self.revision += 1
        library().llama_memory_clear(self._memory, True)

    def evaluate(self, tokens: Sequence[int], *, all_logits: bool = False, seq_id: int = 0) -> np.ndarray:
        """Append tokens to a sequence.

        Args:
            tokens: at least one token id.
            all_logits: return the logits after every token, not only after the last.
            seq_id: the sequence.

        Returns:
            float32 [n_vocab], or [len(tokens), n_vocab].

        Raises:
            InferenceError: no tokens, a token id outside the vocabulary, the context is full, or the logits
                are not finite.
        """
        self._check(tokens, seq_id)
        n_vocab = self.model.n_vocab
        step = self._max_outputs if all_logits else self.n_batch
        rows = []
        for start in range(0, len(tokens), step):
            piece = tokens[start : start + step]
            last = start + step >= len(tokens)
            n_outputs = len(piece) if all_logits else int(last)
            self._decode(piece, n_outputs, seq_id)
            if n_outputs:
                logits = library().llama_get_logits(self.handle)
                rows.append(np.ctypeslib.as_array(logits, shape=(n_outputs, n_vocab)).copy())
                self._require_finite(rows[-1])
        return np.concatenate(rows) if all_logits else rows[-1][-1]

    def _require_finite(self, logits: np.ndarray) -> None:
        """Refuse noise; a maximum is cheap and passes NaN on."""
        largest = logits.max(axis=-1)
        if not np.isfinite(largest).all():
            raise InferenceError(
                "computes logits that are not finite",
                path=self.model.path,
                found=largest[~np.isfinite(largest)][0],
                hint="its weights may hold NaN or infinity; fetch or convert it again",
            )

    def _check(self, tokens: Sequence[int], seq_id: int) -> None:
        if not len(tokens):
            raise InferenceError("no tokens to evaluate", path=self.model.path)
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.model.n_vocab:
            raise InferenceError(
                "token id outside the vocabulary",
                path=self.model.path,
                found=low if low < 0 else high,
                expected=f"0 to {self.model.n_vocab - 1}",
            )
        if self.position(seq_id) + len(tokens) > self.n_ctx:
            raise InferenceError(
                "the context is full",
                path=self.model.path,
                found=f"{self.position(seq_id)} + {len(tokens)} tokens",
                expected=f"at most {self.n_ctx}",
                hint="ask for a larger --ctx-size",
            )

    def _decode(self, tokens: Sequence[int], n_outputs: int, seq_id: int) -> None:
        batch, position = self._batch, self.position(seq_id)
        self.revision += 1
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq_id
            batch.logits[i] = i >= len(tokens) - n_outputs
        clear_log()
        with kept_on(self._cpus):
            status = library().llama_decode(self.handle, batch)
        if self._callback_error is not None:
            error, self._callback_error = self._callback_error, None
            raise error
        if status != 0:
            raise InferenceError(
                f"the engine could not evaluate {len(tokens)} tokens at position {position}",
                path=self.model.path,
                found=last_problem() or f"status {status}",
            )

    def seq_state(self, seq_id: int = 0) -> bytes:
        """A sequence's KV cache and recurrent states, to be put back with `set_seq_state`."""
        lib = library()
        size = lib.llama_state_seq_get_size(self.handle, seq_id)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(memoryview(buffer)[: lib.llama_state_seq_get_data(self.handle, buffer, size, seq_id)])

    def set_seq_state(self, data: bytes, seq_id: int = 0) -> None:
        """Replace a sequence by one that `seq_state` gave, of the same model and KV types.

        Raises:
            StateError: the engine does not take it; the sequence is then empty.
        """
        lib = library()
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        self.revision += 1
        lib.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
        clear_log()
        if lib.llama_state_seq_set_data(self.handle, buffer, len(data), seq_id) == 0:
            lib.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
            raise StateError(
                "the engine does not take this state",
                path=self.model.path,
                found=last_problem(),
                hint="the context may be smaller or its KV types may differ from when the state was saved",
            )

    def _owner(self) -> StateOwner:
        loras = [remembered_sha256(path) for path in self._loras]
        settings = [repr(self.model.spike_plan), self.model.sparse_plan is not None, loras]
        return StateOwner(self.model.header, self.type_k, self.type_v, json.dumps(settings))

    def save(
        self,
        path: Path,
        tokens: Sequence[int],
        seq_id: int = 0,
        *,
        pending: Sequence[int] = (),
        text: str = "",
    ) -> None:
        """Write a sequence to a file, with the tokens that it has seen and what it belongs to.

        Args:
            path: The file.
            tokens: Token ids that the sequence has seen.
            seq_id: The sequence.
            pending: Token ids that follow them, which it has not seen.
            text: Text to keep beside them.

        Raises:
            OutputError: the file cannot be written.
        """
        save_state(path, self._owner(), self.seq_state(seq_id), tokens, pending, text)

    def load(self, path: Path, seq_id: int = 0) -> list[int]:
        """As `load_saved`; returns the tokens that the sequence has seen."""
        return self.load_saved(path, seq_id).tokens

    def load_saved(self, path: Path, seq_id: int = 0) -> SavedState:
        """Put back a sequence that `save` wrote, in this or another process.

        Raises:
            StateError: damaged, from other weights, or other KV types; nothing is changed then.
        """
        saved = load_state(path, self._owner())
        tokens = saved.tokens
        if len(tokens) + len(saved.pending) > self.n_ctx:
            raise StateError(
                "does not fit the context",
                path=path,
                found=f"{len(tokens)} tokens",
                expected=f"at most {self.n_ctx}",
                hint="ask for a larger --ctx-size",
            )
        self.set_seq_state(saved.data, seq_id)
        if self.position(seq_id) != len(tokens):
            raise StateError(
                "the tokens and the state do not belong together",
                path=path,
                found=f"{len(tokens)} tokens",
                expected=self.position(seq_id),
            )
        return saved

    def _tensor_callback(
        self, on_tensor: OnTensor | None, tensor_filter: str | None
    ) -> Callable[[int, bool, object], bool]:
        wanted = re.compile(tensor_filter or ".*")

        def callback(tensor: int, ask: bool, _user_data: object) -> bool:
            name = ggml_base().ggml_get_name(tensor).decode("utf-8", "replace")
            if not wanted.fullmatch(name):
                return not ask
            if ask:
                return True
            try:
                if on_tensor is not None:
                    on_tensor(name, _read_tensor(tensor))
            except BaseException as error:
                # An exception cannot pass through the engine: stop it here, raise it after the call.
                self._callback_error = error
                return False
            return True

        return callback


def _read_tensor(tensor: int) -> np.ndarray:
    base = ggml_base()
    count, rows = base.ggml_nelements(tensor), base.ggml_nrows(tensor)
    dtype = {4: np.float32, 1: np.int8}.get(base.ggml_element_size(tensor))
    if dtype is None:
        raise InferenceError(
            "only float32 and int8 tensors can be watched", item=base.ggml_get_name(tensor).decode()
        )
    values = np.empty((rows, count // rows if rows else 0), dtype=dtype)
    base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
    return values


def _memory_sizes(log: list[str]) -> tuple[int, int]:
    """KV cache and recurrent state bytes, from what the engine says that it allocated (to 0.01 MiB)."""
    sizes = {"llama_kv_cache": 0.0, "llama_memory_recurrent": 0.0}
    for line in log:
        match = _MEMORY_LINE.match(line)
        if match:
            sizes[match[1]] += float(match[2])
    return round(sizes["llama_kv_cache"] * 2**20), round(sizes["llama_memory_recurrent"] * 2**20)
