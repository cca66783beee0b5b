"""Documents in which something is told, and asked for again after other text.

Linear attention keeps a state of fixed size, so what a student unlearns first is to look things up in its
context. Ordinary text has few places where that decides the next token; here every document has some, and
they are marked. None of the sentences, names and words is in a test (`sb_edge.evaluate`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from sb_edge.distill.text.sources import Document
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.distill.text.turns import Turns, turns_of
from sb_edge.util.progress import progress_bar

T = TypeVar("T")

LICENCE = "MIT"
"""As everything here: the words are this project's."""

MOST_FILLER = 36
"""Sentences between telling and asking, at most: 500 tokens."""

PASSAGE = 1500
"""Characters of other text between telling and asking, at most."""

STARTED = 3
"""Words of a passage that comes twice, after which the rest of it can be known."""

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


class _Writer:
    """A text, and the places in it that can be known from what stands before them."""

    def __init__(self) -> None:
        self.text = ""
        self.answers: list[tuple[int, int]] = []

    def add(self, text: str) -> None:
        """Text that is told, or asks."""
        self.text += text

    def answer(self, text: str) -> None:
        """Text that was told before."""
        self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def fill(self, form: str, fact: dict[str, str]) -> None:
        """A sentence of `ASK`: its values are answers."""
        for number, part in enumerate(form.split("{value}")):
            if number:
                self.answer(fact["value"])
            self.add(part.format(**fact))


class _Kind(Protocol):
    def __call__(self, out: _Writer, rng: random.Random, filler: _Filler) -> None: ...


class _Filler:
    """Text between telling and asking: passages of other documents where there are some, or sentences."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._passages = passages

    def __call__(self, rng: random.Random, most: int = MOST_FILLER) -> str:
        """Up to `most` sentences, often few or none."""
        length = int((most + 1) * rng.random() ** 2)
        if not self._passages or rng.random() < 0.3:
            return " ".join(map(_sentence, [rng] * length))
        return self.passage(rng, length * PASSAGE // MOST_FILLER)

    def passage(self, rng: random.Random, characters: int) -> str:
        """A passage of a document of about `characters` characters, in whole words."""
        if not self._passages:
            return " ".join(_sentence(rng) for _ in range(1 + characters // 45))
        text = rng.choice(self._passages)
        start = text.find(" ", rng.randrange(max(1, len(text) - characters)))
        return text[start : start + characters].rpartition(" ")[0].strip()


def recall_documents(
    tokenizer: Tokenizer, tokens: int, seed: int, passages: Sequence[str] = ()
) -> Iterator[Document]:
    """Documents that look back, at least `tokens` tokens of them: answers, lists, passages that come twice.

    Args:
        tokenizer: the base's; where it has tokens for a chat's turns, some documents are chats.
        tokens: to write.
        seed: the same gives the same.
        passages: other text, to stand between telling and asking.
    """
    rng = random.Random(seed)
    filler = _Filler(passages)
    kinds: list[_Kind] = [_notes, _table, _table, _twice, _assignments]
    turns = turns_of(tokenizer)
    if turns:
        kinds.append(partial(_chat, turns))
    written = number = 0
    with progress_bar("writing text to recall, tokens", tokens) as advance:
        while written < tokens:
            out = _Writer()
            rng.choice(kinds)(out, rng, filler)
            document = Document(out.text, f"recall {seed}/{number}", LICENCE, "recall", tuple(out.answers))
            size = len(tokenizer.document(document))
            yield document
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


def _sentence(rng: random.Random) -> str:
    nouns, adjective, verb = rng.sample(_NOUNS, 2), rng.choice(_ADJECTIVES), rng.choice(_VERBS)
    return f"The {adjective} {nouns[0]} {verb} the {nouns[1]}."


def _notes(out: _Writer, rng: random.Random, filler: _Filler) -> None:
    """Facts among other text, and questions with their answers."""
    facts = _facts(rng, 6)
    for fact in facts:
        out.add(f"{filler(rng, 6)} {rng.choice(TELL).format(**fact)}\n\n".lstrip())
    out.add(filler(rng))
    for fact in _some(rng, facts):
        out.add("\n\n")
        out.fill(rng.choice(ASK), fact)


def _chat(turns: Turns, out: _Writer, rng: random.Random, filler: _Filler) -> None:
    """The same as a conversation."""
    facts = _facts(rng, 4)
    before = " ".join(rng.choice(TELL).format(**fact) for fact in facts) + f"\n\n{filler(rng)}\n\n"
    for fact in _some(rng, facts):
        out.add(turns.prompt.format(before + "What is the {owner}'s {thing}?".format(**fact)))
        out.fill("The {owner}'s {thing} is {value}.", fact)
        out.add(turns.end)
        before = ""


def _table(out: _Writer, rng: random.Random, filler: _Filler) -> None:
    """Rows, and some of them again in another order."""
    thing = rng.choice((*NUMBERED, *NAMED))
    keys = rng.sample(rng.choice((OWNERS, WORDS)), rng.randint(4, 20))
    form = rng.choice(("{} -> {}", "{} = {}", "- {}, {}", "| {} | {} |", '"{}": "{}",', "{}\t{}"))
    rows = {key: _value(rng, thing) for key in keys}
    out.add(f"List, {thing}\n\n" + "\n".join(form.format(*row) for row in rows.items()))
    out.add(f"\n\n{filler(rng)}\n\nFrom the list, {thing}\n")
    before, between, after = form.split("{}")
    for key in _some(rng, keys):
        out.add(f"\n{before}{key}{between}")
        out.answer(rows[key] + after)


def _twice(out: _Writer, rng: random.Random, filler: _Filler) -> None:
    """A passage, something else, and the passage again."""
    passage = filler.passage(rng, rng.randint(150, 900))
    start = len(" ".join(passage.split(" ")[:STARTED]))
    out.add(f"{passage}\n\n{filler(rng)}\n\nOnce more, from the beginning:\n\n{passage[:start]}")
    out.answer(passage[start:])


def _assignments(out: _Writer, rng: random.Random, filler: _Filler) -> None:
    """Values of names in a program, and what it prints."""
    names = rng.sample(WORDS, rng.randint(3, 10))
    values = {name: _value(rng, rng.choice((*NUMBERED, *NAMED))) for name in names}
    out.add("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    out.add(f'"""{filler(rng)}"""\n')
    for name in _some(rng, names):
        out.add(f"print({name})  # ")
        out.answer(values[name])
        out.add("\n")


def _some(rng: random.Random, items: list[T]) -> list[T]:
    """At least one of the items, in random order."""
    return rng.sample(items, rng.randint(1, len(items)))
