"""A model and a session for reading and writing text, with the checks that come before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sb_edge.arch.model_check import read_model
from sb_edge.memory.check import require_memory
from sb_edge.memory.forecast import DEFAULT_UBATCH, EngineSettings, FlashChoice
from sb_edge.runtime.model import require_vocab
from sb_edge.runtime.session import Model, Session


@dataclass(frozen=True)
class Loading:
    """How a model is loaded and its context made, in llama.cpp's words.

    Attributes:
        n_ctx: Context size in tokens.
        n_threads: Number of threads; None: the fast physical cores.
        n_batch: Prompt tokens handed to the engine at once.
        n_ubatch: Prompt tokens computed at once.
        type_k, type_v: Types of cached keys and values.
        flash_attn: See `uses_flash_attention`.
        use_mmap: Map the weights instead of reading them.
        use_mlock: Keep the weights in physical memory.
        loras: LoRA adapters (GGUF), applied with scale 1.
        spikes: k of every coded input; 0: no spikes; None: as the file says.
    """

    n_ctx: int = 8192
    n_threads: int | None = None
    n_batch: int = 512
    n_ubatch: int = DEFAULT_UBATCH
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: FlashChoice = "auto"
    use_mmap: bool = True
    use_mlock: bool = False
    loras: tuple[Path, ...] = ()
    spikes: float | None = None


def open_session(path: Path, loading: Loading) -> Session:
    """Open a GGUF with a vocabulary and a session on it that keeps the last logits; close both when done.

    Memory is checked here, once, before anything is loaded.

    Raises:
        GgufError: not a sound GGUF, or one that the engine cannot run.
        SpikeError: `spikes` does not fit the model.
        InferenceError: no vocabulary, or the engine refuses the settings or an adapter.
        OutOfMemoryForecast: weights and context will not fit in memory.
    """
    header = read_model(path)
    require_vocab(header)
    settings = EngineSettings(
        loading.type_k,
        loading.type_v,
        n_ubatch=loading.n_ubatch,
        flash_attn=loading.flash_attn,
        spikes=loading.spikes,
    )
    require_memory(header, loading.n_ctx, settings)
    with ExitStack() as opened:
        model = Model(
            path,
            header=header,
            use_mmap=loading.use_mmap,
            use_mlock=loading.use_mlock,
            spikes=loading.spikes,
            is_checked=True,
        )
        opened.enter_context(model)
        session = Session(
            model,
            n_ctx=loading.n_ctx,
            n_threads=loading.n_threads,
            n_batch=loading.n_batch,
            n_ubatch=loading.n_ubatch,
            n_outputs=1,
            type_k=loading.type_k,
            type_v=loading.type_v,
            flash_attn=loading.flash_attn,
            is_checked=True,
        )
        opened.enter_context(session)
        session.apply_loras(loading.loras)
        opened.pop_all()
    return session


@contextmanager
def text_session(path: Path, loading: Loading) -> Iterator[Session]:
    """As `open_session`; closes model and session at the end of the block."""
    session = open_session(path, loading)
    with session.model, session:
        yield session
