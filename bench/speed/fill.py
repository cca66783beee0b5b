"""A synthetic context for a Transformer baseline: one real chunk's keys and values, repeated.

Decoding speed depends on how many positions the cache holds, not on what they say, while prefilling a
Transformer to 262144 tokens takes a CPU the better part of a day. So one real chunk is prefilled, its
sequence state is loaded into a helper sequence again and again, shifted to the next free positions, joined to
the main sequence and dropped from the helper. Only the public interface of llama.cpp is used, and memory
beyond the cache itself stays at one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sb_edge.runtime.binding import library
from sb_edge.util.errors import InferenceError
from sb_edge.util.progress import Advance

if TYPE_CHECKING:
    from sb_edge.runtime.session import Session

CHUNK = 512
"""Tokens prefilled for real and then repeated."""

MAIN, HELPER = 0, 1
ALL = -1
"""llama.cpp's open end of a range of positions."""


def synthetic_fill(session: Session, depth: int, tokens: Sequence[int], advance: Advance) -> None:
    """Bring an empty session to `depth` with copies of one real chunk.

    The engine applies the shifted rotary embeddings when it next decodes: decode a token before timing.

    Args:
        session: empty, opened with `n_seq_max=2, kv_unified=True` and room for `depth` and a chunk more.
        depth: positions to fill.
        tokens: the chunk, at most `depth` of it is used.
        advance: told of the positions filled.

    Raises:
        InferenceError: the session is not empty, or its memory cannot be shifted (recurrent state, special
            position encodings).
    """
    llama = library()
    memory = llama.llama_get_memory(session.handle)
    if memory is None or session.state_bytes or not llama.llama_memory_can_shift(memory):
        raise InferenceError(
            "this model's context cannot be filled synthetically",
            hint="use --fill real",
            found="no shiftable KV cache",
        )
    if session.position() != 0:
        raise InferenceError(
            "a synthetic fill starts from an empty context", found=f"{session.position()} tokens"
        )
    chunk = min(len(tokens), depth)
    session.evaluate(tokens[:chunk])
    advance(chunk)
    state = session.seq_state(MAIN)
    for start in range(chunk, depth, chunk):
        length = min(chunk, depth - start)
        session.set_seq_state(state, HELPER)
        llama.llama_memory_seq_rm(memory, HELPER, length, ALL)
        llama.llama_memory_seq_add(memory, HELPER, 0, ALL, start)
        llama.llama_memory_seq_cp(memory, HELPER, MAIN, 0, ALL)
        llama.llama_memory_seq_rm(memory, HELPER, 0, ALL)
        advance(length)
    if session.position() != depth:
        raise InferenceError("the synthetic fill went wrong", found=session.position(), expected=depth)
