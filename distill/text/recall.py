"""Documents in which something is told, and asked for again after other text.

Linear attention keeps a state of fixed size, so what a student unlearns first is to look things up in its
context. Ordinary text has few places where that decides the next token; here every document has some.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from sb_edge.distill.text.sources import Document
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.distill.text.turns import Turns, turns_of
from sb_edge.util.progress import progress_bar

T = TypeVar("T")

LICENCE = "MIT"
"""As everything here: the words are this project's."""

MOST_FILLER = 36
"""Sentences between telling and asking, at most: 500 tokens."""

OWNERS = (
    "baker", "captain", "gardener", "teacher", "pilot", "nurse", "farmer", "painter", "librarian", "driver",
    "cook", "tailor", "doctor", "miller", "singer", "plumber", "guide", "clerk", "fisher", "potter",
    "carpenter", "judge", "dentist", "student", "porter", "jeweller", "editor", "engineer", "chemist",
    "coach",
)  # fmt: skip
NUMBERED = (
    "locker number", "room number", "telephone number", "order number", "gate code", "safe combination",
    "ticket number", "invoice number", "membership number", "house number", "bus line", "shelf number",
    "account number", "seat number", "year of birth", "door code", "parcel number", "best score",
)  # fmt: skip
NAMED = (
    "favourite colour", "boat", "dog", "home town", "instrument", "favourite dish", "street", "password",
    "horse", "drink", "favourite flower", "secret word", "shop", "team", "hobby", "code word",
)  # fmt: skip
WORDS = (
    "amber", "violet", "maple", "falcon", "cello", "harbour", "saffron", "comet", "walnut", "ivory",
    "thistle", "badger", "copper", "lantern", "juniper", "marble", "otter", "velvet", "willow", "anchor",
    "basil", "cobalt", "daisy", "ember", "flint", "ginger", "heron", "indigo", "jasmine", "kestrel",
    "lemon", "magnet", "nutmeg", "olive", "pepper", "quartz", "raven", "silver", "tulip", "umber",
)  # fmt: skip
TELL = (
    "The {owner}'s {thing} is {value}.",
    "Please keep in mind that the {owner}'s {thing} is {value}.",
    "As for the {owner}: the {thing} is {value}.",
    "{value} is the {thing} of the {owner}.",
    "Note for later: {thing} of the {owner}, {value}.",
    "The {owner} has told us the {thing}: it is {value}, and {value} it stays.",
)
ASK = (
    "What is the {owner}'s {thing}? The {owner}'s {thing} is {value}.",
    "Which {thing} does the {owner} have? It is {value}.",
    "Question: what was the {thing} of the {owner}?\nAnswer: {value}",
    "Now the {thing} of the {owner} once more: {value}.",
    "Somebody asks for the {owner}'s {thing}. The answer is {value}.",
    "As we read above, the {thing} of the {owner} is {value}.",
)
_NOUNS = (
    "train", "garden", "letter", "kitchen", "market", "cloud", "table", "forest", "window", "engine",
    "storm", "bottle", "ladder", "orchard", "station", "blanket", "museum", "island", "hammer", "candle",
)  # fmt: skip
_ADJECTIVES = (
    "quiet", "large", "broken", "early", "heavy", "bright", "narrow", "famous", "wet", "simple",
    "empty", "warm", "strange", "useful", "distant", "clean",
)  # fmt: skip
_VERBS = (
    "is not far from", "was built before", "looks much like", "belongs to", "stands behind", "came after",
    "is older than", "has nothing to do with", "can be seen from", "costs more than",
)  # fmt: skip


def recall_documents(tokenizer: Tokenizer, tokens: int, seed: int) -> Iterator[Document]:
    """Documents that look back, at least `tokens` tokens of them: answers, lists, passages that come twice.

    Args:
        tokenizer: the base's; where it has tokens for a chat's turns, some documents are chats.
        tokens: to write.
        seed: the same gives the same.
    """
    rng = random.Random(seed)
    kinds: list[Callable[[random.Random], str]] = [_notes, _table, _twice]
    turns = turns_of(tokenizer)
    if turns:
        kinds.append(partial(_chat, turns))
    written = number = 0
    with progress_bar("writing text to recall, tokens", tokens) as advance:
        while written < tokens:
            text = rng.choice(kinds)(rng)
            size = len(tokenizer.document(text))
            yield Document(text, f"recall {seed}/{number}", LICENCE)
            number += 1
            written += size
            advance(size)


def _facts(rng: random.Random, most: int) -> list[dict[str, str]]:
    """Things with an owner and a value; no owner has two of a kind."""
    pairs = [(owner, thing) for owner in OWNERS for thing in (*NUMBERED, *NAMED)]
    chosen = rng.sample(pairs, rng.randint(1, most))
    return [{"owner": owner, "thing": thing, "value": _value(rng, thing)} for owner, thing in chosen]


def _value(rng: random.Random, thing: str) -> str:
    if thing in NUMBERED:
        return "".join(rng.choices("0123456789", k=rng.randint(2, 8)))
    return " ".join(rng.sample(WORDS, rng.choice((1, 1, 2))))


def _filler(rng: random.Random, most: int = MOST_FILLER) -> str:
    """Some sentences, often few or none."""
    return " ".join(
        f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_VERBS)} the {rng.choice(_NOUNS)}."
        for _ in range(int((most + 1) * rng.random() ** 2))
    )


def _notes(rng: random.Random) -> str:
    """Facts among other text, and questions with their answers."""
    facts = _facts(rng, 6)
    told = [f"{_filler(rng, 6)} {rng.choice(TELL).format(**fact)}".strip() for fact in facts]
    asked = [rng.choice(ASK).format(**fact) for fact in _some(rng, facts)]
    return "\n\n".join(part for part in (*told, _filler(rng), *asked) if part)


def _chat(turns: Turns, rng: random.Random) -> str:
    """The same as a conversation."""
    facts = _facts(rng, 4)
    told = " ".join(rng.choice(TELL).format(**fact) for fact in facts)
    said = []
    for number, fact in enumerate(_some(rng, facts)):
        question = "What is the {owner}'s {thing}?".format(**fact)
        before = "" if number else f"{told}\n\n{_filler(rng)}\n\n"
        answer = "The {owner}'s {thing} is {value}.".format(**fact)
        said.append(f"{turns.prompt.format(before + question)}{answer}{turns.end}")
    return "".join(said)


def _table(rng: random.Random) -> str:
    """Rows, and some of them again in another order."""
    thing = rng.choice((*NUMBERED, *NAMED))
    owners = rng.sample(OWNERS, rng.randint(4, 20))
    rows = [f"{owner}: {_value(rng, thing)}" for owner in owners]
    again = "\n".join(_some(rng, rows))
    return f"List, {thing}\n\n" + "\n".join(rows) + f"\n\n{_filler(rng)}\n\nFrom the list, {thing}\n\n{again}"


def _twice(rng: random.Random) -> str:
    """A passage, something else, and the passage again."""
    passage = f"{_filler(rng, 8)} {rng.choice(TELL).format(**_facts(rng, 1)[0])} {_filler(rng, 8)}".strip()
    return f"{passage}\n\n{_filler(rng)}\n\nOnce more, from the beginning:\n\n{passage}"


def _some(rng: random.Random, items: list[T]) -> list[T]:
    """At least one of the items, in random order."""
    return rng.sample(items, rng.randint(1, len(items)))
