"""Cases of retrieval from the context: passkeys, dictionaries of words and numbers, facts told in prose.

Names, words and sentences here are this project's, and none of them is in the texts that students train on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["passkey", "dictionary", "facts"]

Encode = Callable[[str], list[int]]
"""Tokens of a text, without special tokens around it."""

FILLER = (
    "The road runs along the river.",
    "A boat lies in the reeds.",
    "Behind the hill there is a field of barley.",
    "The wind has turned to the west.",
    "Someone has left a gate open.",
    "Two herons stand in the shallow water.",
    "The bridge is made of old grey stone.",
    "Smoke rises from a chimney far away.",
    "In the evening the bells can be heard.",
    "A path leads through the wood to the mill.",
)
_WORDS = (
    "acorn", "balcony", "canyon", "dolphin", "eclipse", "feather", "glacier", "hazel", "igloo", "jungle",
    "kettle", "lagoon", "meadow", "needle", "oyster", "parrot", "quilt", "ribbon", "saddle", "timber",
    "urchin", "valley", "wagon", "yogurt", "zebra", "almond", "beacon", "cactus", "dragon", "elbow",
    "fountain", "goblet", "helmet", "insect", "jacket", "kitten", "lobster", "mirror", "napkin", "organ",
)  # fmt: skip
_PEOPLE = (
    "Agnes", "Bruno", "Clara", "Dmitri", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Katrin",
    "Leon", "Maria", "Nils", "Olga", "Pedro", "Rosa", "Samuel", "Teresa", "Viktor",
)  # fmt: skip
_PLACES = (
    "Lisbon", "Prague", "Dublin", "Oslo", "Vienna", "Athens", "Madrid", "Warsaw", "Naples", "Geneva",
    "Cairo", "Lima", "Toronto", "Boston", "Kyoto", "Sydney",
)  # fmt: skip
_WORK = (
    "barber", "florist", "lawyer", "surgeon", "sculptor", "janitor", "waiter", "violinist", "translator",
    "beekeeper", "butcher", "mechanic", "journalist", "sailor", "magician", "accountant",
)  # fmt: skip
_PETS = (
    "parrot", "tortoise", "goat", "hamster", "rabbit", "donkey", "lizard", "canary", "snake", "pig",
    "spider", "monkey", "hen", "mouse", "cat", "fox",
)  # fmt: skip
_FOOD = (
    "soup", "cheese", "rice", "pancakes", "apples", "sausages", "mushrooms", "cherries", "noodles", "fish",
    "chocolate", "carrots", "pizza", "honey", "beans", "potatoes",
)  # fmt: skip
_MUSIC = ("piano", "guitar", "flute", "drums", "trumpet", "harp", "banjo", "clarinet", "organ", "accordion")
_COLOURS = ("red", "blue", "green", "black", "white", "yellow", "grey", "purple", "brown", "orange")
_FACTS = (
    ("{name} grew up in {value}.", "Where did {name} grow up?", "{name} grew up in", _PLACES),
    ("{name} works as a {value}.", "What does {name} work as?", "{name} works as a", _WORK),
    ("{name} has a {value} at home.", "Which animal does {name} have at home?", "{name} has a", _PETS),
    ("On Sundays {name} eats {value}.", "What does {name} eat on Sundays?", "On Sundays {name} eats", _FOOD),
    ("{name} learns to play the {value}.", "What does {name} learn to play?", "{name} plays the", _MUSIC),
    ("The car of {name} is {value}.", "Which colour does the car of {name} have?", "The car is", _COLOURS),
)
"""How a fact is told, the question for it, the beginning of the answer, and the values."""


@dataclass(frozen=True)
class RecallCase:
    """A prompt that holds the answer to the question at its end.

    Attributes:
        kind: the task.
        told: tokens up to the last thing that is told.
        asked: tokens of the question.
        answer: tokens that are right after it.
    """

    kind: Kind
    told: tuple[int, ...]
    asked: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """All before the answer."""
        return self.told + self.asked


def tested_words() -> set[str]:
    """Names and values of all cases, none of which may be in training text for retrieval."""
    values = (value for *_, values in _FACTS for value in values)
    return {*_WORDS, *_PEOPLE, *values}


def passkey_case(encode: Encode, rng: random.Random, distance: int) -> RecallCase:
    """A number of five digits, `distance` tokens of other text, and the question for the number."""
    key = "".join(rng.choices("0123456789", k=5))
    told = (
        "A pass key is told in this text. Remember it.\n\n"
        f"The pass key is {key}. Remember: {key} is the pass key.\n\n"
    )
    asked = "\n\nWhat is the pass key? The pass key is"
    return _case("passkey", encode, rng, told, asked, f" {key}", distance)


def dictionary_case(encode: Encode, rng: random.Random, pairs: int, distance: int = 0) -> RecallCase:
    """Words with a number of three digits each, and the question for one of them."""
    words = rng.sample(_WORDS, pairs)
    numbers = rng.sample(range(100, 1000), pairs)
    lines = "".join(f"{word}: {number}\n" for word, number in zip(words, numbers, strict=True))
    wanted = rng.randrange(pairs)
    told = f"A list of words and their numbers:\n\n{lines}"
    asked = f"\nWhat is the number of {words[wanted]}?\n{words[wanted]}:"
    return _case("dictionary", encode, rng, told, asked, f" {numbers[wanted]}", distance)


def facts_case(encode: Encode, rng: random.Random, distance: int = 0) -> RecallCase:
    """A fact about each of four people, told in prose, and the question for one of them."""
    names = rng.sample(_PEOPLE, 4)
    facts = rng.sample(_FACTS, len(names))
    chosen = [rng.choice(values) for *_, values in facts]
    told = " ".join(
        f"{tell.format(name=name, value=value)} {rng.choice(FILLER)}"
        for (tell, *_), name, value in zip(facts, names, chosen, strict=True)
    )
    wanted = rng.randrange(len(names))
    _, question, answer, _ = facts[wanted]
    asked = f"\n\nQuestion: {question}\nAnswer: {answer}".format(name=names[wanted])
    return _case("facts", encode, rng, told, asked, f" {chosen[wanted]}", distance)


def filler(encode: Encode, rng: random.Random, tokens: int) -> list[int]:
    """That many tokens of text that tells nothing."""
    written: list[int] = []
    while len(written) < tokens:
        written += encode(" ".join(rng.sample(FILLER, len(FILLER))) + "\n")
    return written[:tokens]


def _case(
    kind: Kind, encode: Encode, rng: random.Random, told: str, asked: str, answer: str, distance: int
) -> RecallCase:
    question = encode(asked)
    between = filler(encode, rng, distance)
    return RecallCase(
        kind,
        (*encode(told), *between),
        tuple(question),
        tuple(encode(asked + answer)[len(question) :]),
    )


def mean_by_kind(cases: Sequence[RecallCase], values: Sequence[float]) -> dict[Kind, float]:
    """The mean of the values of each kind's cases."""
    kinds = list(dict.fromkeys(case.kind for case in cases))
    found = {kind: [x for case, x in zip(cases, values, strict=True) if case.kind == kind] for kind in kinds}
    return {kind: sum(part) / len(part) for kind, part in found.items()}
