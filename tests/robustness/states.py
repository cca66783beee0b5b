"""Changed copies of a saved state: every one is refused, and the session goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from sb_edge.runtime.session import Model, Session

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def make_state(model: Path, path: Path) -> None:
    """Save a state."""
    with Model(model) as loaded, Session(loaded, n_ctx=256, n_threads=1) as session:
        session.evaluate(TOKENS)
        session.save(path, TOKENS)


def load(model: Path, path: Path) -> bool:
    """Load a state that must be refused, then use the session; True if the state was taken."""
    with Model(model) as loaded, Session(loaded, n_ctx=256, n_threads=1) as session:
        try:
            session.load(path)
        finally:
            session.evaluate(TOKENS[:2])
    return True


def cases(
    model: Path, state: Path, count: int, seed: int, folder: Path
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Flips of bits and truncations, as work for a child."""
    whole, path = state.read_bytes(), folder / "mutant.state"
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        data = bytearray(whole)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        else:
            size = len(data) if chance.random() < 0.5 else 1024
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        yield f"state {number}", lambda: load(model, path)
