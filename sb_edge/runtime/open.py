"""A model and a session for reading and writing text, with the checks that come before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sb_edge.gguf.reader import read_header
from sb_edge.memory.check import require_memory
from sb_edge.memory.forecast import EngineSettings
from sb_edge.runtime.session import Model, Session


@contextmanager
def text_session(
    path: Path, *, n_ctx: int, n_threads: int | None, kv_type: str, spikes: float | None
) -> Iterator[Session]:
    """Open a GGUF with a vocabulary and a session on it that keeps the last logits.

    Args:
        path: the GGUF.
        n_ctx: tokens.
        n_threads: None: as `default_threads`.
        kv_type: of the KV cache.
        spikes: as `Model` takes it.

    Raises:
        GgufError: not a sound GGUF, or one that the engine cannot run.
        SpikeError: `spikes` does not fit the model.
        InferenceError: no vocabulary, or the engine refuses the settings.
        OutOfMemoryForecast: weights and context will not fit in memory.
    """
    header = read_header(path)
    require_memory(header, n_ctx, EngineSettings(kv_type, kv_type, spikes=spikes))
    with Model(path, header=header, spikes=spikes) as model:
        model.require_vocab()
        with Session(
            model, n_ctx=n_ctx, n_threads=n_threads, n_outputs=1, type_k=kv_type, type_v=kv_type
        ) as session:
            yield session
