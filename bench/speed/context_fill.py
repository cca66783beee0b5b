"""Synthetic context fill for a Transformer baseline: repeated keys and values of one real chunk.

Decode speed depends on the number of cached positions, not on their content, and prefilling a Transformer
with 262144 tokens takes a CPU most of a day. So one chunk is prefilled. Its sequence state is loaded into a
helper sequence repeatedly, shifted to the next free positions, and copied to the main sequence. This uses
only llama.cpp's public interface and needs memory for one additional chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

from sb_edge.runtime.binding import library
from sb_edge.runtime.session import Session
from sb_edge.util.errors import InferenceError
from sb_edge.util.progress import Advance

CHUNK = 512
"""Number of prefilled tokens that are repeated."""

MAIN, HELPER = 0, 1
ALL = -1
"""llama.cpp's value for an open end of a range of positions."""


def synthetic_fill(session: Session, depth: int, tokens: Sequence[int], advance: Advance) -> None:
    """Fill an empty session to `depth` with copies of one real chunk.

    The engine applies the shifted rotary embeddings in its next decode call; decode a token before timing.

    Args:
        session: empty, opened with `n_seq_max=2, kv_unified=True` and a context of `depth` plus one chunk.
        depth: number of positions to fill.
        tokens: the chunk; its first `depth` tokens are used.
        advance: called with the number of filled positions.

    Raises:
        InferenceError: the session is not empty, or its memory cannot be shifted (recurrent state, special
            position encodings).
    """
    llama = library()
    memory = llama.llama_get_memory(session.handle)
    if memory is None or session.state_bytes or not llama.llama_memory_can_shift(memory):
        raise InferenceError(
            "this model does not support synthetic context fill",
            hint="use --fill real",
            found="no shiftable KV cache",
        )
    if session.position() != 0:
        raise InferenceError(
            "synthetic context fill needs an empty context", found=f"{session.position()} tokens"
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
        raise InferenceError("synthetic context fill failed", found=session.position(), expected=depth)
