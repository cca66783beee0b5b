"""Changed copies of six kinds of GGUF, and what a user does with a model."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sb_edge.cli.inspect import describe
from sb_edge.gguf.reader import read_header, read_layout
from sb_edge.runtime.generation import Generation, Stopping
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Model, Session

NUMBERS = (0, 1, 2, 3, 7, 8, 31, 32, 33, 255, 256, 512, 1023, 2**16, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("inf"), -float("inf"), float("nan"))
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def mutants(source: Path, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Label and content of changed copies of a GGUF."""
    whole, layout = source.read_bytes(), read_layout(source)
    spans = list(layout.keys.items())
    kinds = (
        _change_value,
        _change_value,
        _flip_header,
        _flip_table,
        _truncate,
        _swap_keys,
        _drop_key,
        _poison,
    )
    for number in range(count):
        chance = random.Random(f"{seed} {source.name} {number}")
        kind = chance.choice(kinds)
        data = bytearray(whole)
        detail = kind(data, chance, spans, layout.table, layout.data)
        yield f"{source.stem} {number} {kind.__name__[1:]} {detail}", bytes(data)


Spans = list[tuple[str, tuple[int, int]]]
Table = tuple[int, int]


def _change_value(data: bytearray, chance: random.Random, spans: Spans, _table: Table, _start: int) -> str:
    key, (begin, end) = chance.choice(spans)
    place = begin + 8 + len(key.encode())
    kind = struct.unpack_from("<I", data, place)[0]
    if kind == 9:  # an array: one of its elements, or its length
        inner, length = struct.unpack_from("<IQ", data, place + 4)
        first = place + 16
        if chance.random() < 0.2 or not length:
            struct.pack_into("<Q", data, place + 8, chance.choice(NUMBERS))
        elif inner == 8:
            data[chance.randrange(first, end)] = chance.randrange(256)
        else:
            _number(data, first + SIZES[inner] * chance.randrange(length), inner, chance)
    elif kind == 8:
        if end > place + 12:
            data[chance.randrange(place + 12, end)] = chance.choice(b"\x00\x1b A\xff")
    else:
        _number(data, place + 4, kind, chance)
    return key


def _number(data: bytearray, place: int, kind: int, chance: random.Random) -> None:
    if kind in (6, 12):
        struct.pack_into("<f" if kind == 6 else "<d", data, place, chance.choice(FLOATS))
    else:
        size = SIZES[kind]
        value = chance.choice(NUMBERS) % 2 ** (8 * size)
        data[place : place + size] = value.to_bytes(size, "little")


def _flip_header(data: bytearray, chance: random.Random, _spans: Spans, table: Table, _start: int) -> str:
    for _ in range(chance.randrange(1, 5)):
        data[chance.randrange(table[0])] ^= 1 << chance.randrange(8)
    return ""


def _flip_table(data: bytearray, chance: random.Random, _spans: Spans, table: Table, _start: int) -> str:
    for _ in range(chance.randrange(1, 3)):
        data[chance.randrange(*table)] ^= 1 << chance.randrange(8)
    return ""


def _truncate(data: bytearray, chance: random.Random, _spans: Spans, _table: Table, _start: int) -> str:
    del data[chance.randrange(len(data)) :]
    return str(len(data))


def _swap_keys(data: bytearray, chance: random.Random, spans: Spans, _table: Table, _start: int) -> str:
    """The names of two keys of one length change places, so that their values belong to the other."""
    (one, (first, _)), (other, (second, _)) = chance.sample(spans, 2)
    if len(one.encode()) == len(other.encode()):
        data[first + 8 : first + 8 + len(one.encode())] = other.encode()
        data[second + 8 : second + 8 + len(other.encode())] = one.encode()
    return f"{one} {other}"


def _drop_key(data: bytearray, chance: random.Random, spans: Spans, _table: Table, _start: int) -> str:
    """A key's name is no longer known."""
    key, (begin, _) = chance.choice(spans)
    data[begin + 8] = ord("_")
    return key


def _poison(data: bytearray, chance: random.Random, _spans: Spans, _table: Table, start: int) -> str:
    """NaN, infinity or large numbers in the weights."""
    place = chance.randrange(start, len(data) - 64)
    values = [chance.choice((float("nan"), float("inf"), 3e38)) for _ in range(chance.randrange(1, 16))]
    struct.pack_into(f"<{len(values)}f", data, place - place % 4, *values)
    return str(place)


def use(path: Path) -> bool:
    """Inspect, load, tokenize, read a prompt and answer; False if a number is not finite.

    Raises:
        SbEdgeError: the file is refused.
    """
    describe(read_header(path), None, False)
    with Model(path) as model, Session(model, n_ctx=256, n_threads=1, n_outputs=1) as session:
        tokens = model.tokenize("The end, and 12 more.") if model.has_vocab else [1, 2, 3]
        logits = session.evaluate(tokens or [0])
        generation = Generation(
            session, [0], Sampling(seed=1), stopping=Stopping(3), ignore_end=not model.has_vocab
        )
        ids = list(generation.ids())
        model.detokenize(ids) if model.has_vocab else None
    return bool(np.isfinite(logits.max()))


def cases(
    sources: list[Path], count: int, seed: int, folder: Path
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """The mutants of every source in turn, as work for a child."""
    path = folder / "mutant.gguf"
    for source in sources:
        for label, data in mutants(source, -(-count // len(sources)), seed):
            path.write_bytes(data)
            yield label, lambda: use(path)
