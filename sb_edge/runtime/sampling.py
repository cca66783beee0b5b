"""Choosing the next token, with the engine's own samplers in llama.cpp's order."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sb_edge.runtime.binding import clear_log, first_problem, library, typed
from sb_edge.runtime.session import Session
from sb_edge.util.errors import InferenceError

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "repeat_last_n": (0, 2**20),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, 2**32 - 2),  # the last number of 32 bits draws a seed in the engine
}
"""Smallest and largest value of each number in `Sampling`."""

_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_GREEDY_BELOW = 1e-6
"""Logits divided by a smaller temperature leave the range of float32."""


@dataclass(frozen=True)
class Sampling:
    """llama.cpp's sampling options and their defaults.

    Attributes:
        temperature: 0 is greedy, and so is everything below 1e-6.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 keeps all.
        repeat_penalty: above 1 makes recent tokens less likely.
        repeat_last_n: Number of recent tokens that the penalties look at.
        presence_penalty: Penalty for tokens that occurred; 0 is none.
        frequency_penalty: Penalty for each occurrence of a token; 0 is none.
        seed: None draws one.
        grammar: GBNF grammar that the output follows.
        json_schema: JSON schema that the output follows; not together with `grammar`.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    grammar: str | None = None
    json_schema: str | None = None

    def __post_init__(self) -> None:
        """Raises InferenceError: a number is outside its range in `RANGES`."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InferenceError("is out of range", item=name, found=value, expected=f"{least} to {most}")


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """A chain of samplers; reads the logits of a session's last output.

    Args:
        session: The session.
        sampling: How tokens are chosen.
        recent: Tokens before the first one to choose, of which the penalties see the last.
    """

    def __init__(self, session: Session, sampling: Sampling, recent: Sequence[int] = ()) -> None:
        lib = library()
        self._session, self._sample = session, _guarded("sample")
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for sampler in self._samplers(sampling, recent):
            lib.llama_sampler_chain_add(self._chain, sampler)

    def _samplers(self, sampling: Sampling, recent: Sequence[int]) -> list[Any]:
        lib = library()
        chain = []
        grammar = _grammar(sampling)
        if grammar is not None:
            chain.append(self._grammar_sampler(grammar))
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if penalties != (1.0, 0.0, 0.0):
            n_vocab = self._session.model.n_vocab
            chain.append(lib.llama_sampler_init_penalties(n_vocab, sampling.repeat_last_n, *penalties))
            for token in recent[-sampling.repeat_last_n :] if sampling.repeat_last_n else ():
                lib.llama_sampler_accept(chain[-1], token)
        if sampling.temperature < _GREEDY_BELOW:
            return [*chain, lib.llama_sampler_init_greedy()]
        seed = secrets.randbelow(2**32 - 1) if sampling.seed is None else sampling.seed
        return [
            *chain,
            lib.llama_sampler_init_top_k(sampling.top_k),
            lib.llama_sampler_init_top_p(sampling.top_p, 1),
            lib.llama_sampler_init_min_p(sampling.min_p, 1),
            lib.llama_sampler_init_temp(sampling.temperature),
            lib.llama_sampler_init_dist(seed),
        ]

    def _grammar_sampler(self, grammar: str) -> Any:
        clear_log()
        sampler = _guarded("init_grammar")(self._session.model.vocab, grammar.encode(), b"root")
        if not sampler:
            raise InferenceError(
                "the grammar is not valid", found=first_problem(), expected="GBNF with a rule named root"
            )
        return sampler

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        library().llama_sampler_free(self._chain)

    def next_token(self) -> int:
        """Choose a token from the last logits, and remember it for the repeat penalty.

        Raises:
            InferenceError: the grammar cannot be followed.
        """
        clear_log()
        token = int(self._sample(self._chain, self._session.handle, -1))
        if token < 0:
            raise InferenceError("the grammar cannot be followed", found=first_problem())
        return token


def _guarded(name: str) -> Any:
    """A sampler function that logs exceptions of C++; a stock engine has none, and ends with the process."""
    lib = library()
    plain = getattr(lib, f"llama_sampler_{name}")
    guarded = f"llama_sb_sampler_{name}"
    return typed(lib._lib, guarded, plain.restype, *plain.argtypes) if hasattr(lib._lib, guarded) else plain


def _refuse_bounds(schema: Any) -> None:
    """The converter leaves these out without a word."""
    if isinstance(schema, dict):
        kinds = schema.get("type")
        is_number = bool({"number", "integer"} & set(kinds if isinstance(kinds, list) else [kinds]))
        for key in _BOUNDS & set(schema) if is_number else ():
            raise InferenceError(
                "bounds of numbers are not supported", item=key, found=schema[key], hint="leave it out"
            )
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _refuse_bounds(each)


def _grammar(sampling: Sampling) -> str | None:
    """The grammar as GBNF, from whichever of the two options is given."""
    if sampling.json_schema is None:
        return sampling.grammar
    if sampling.grammar is not None:
        raise InferenceError("a grammar and a JSON schema exclude each other", hint="give one of them")
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        _refuse_bounds(json.loads(sampling.json_schema))
        # A string of JSON holds no raw control characters.
        return str(json_schema_to_gbnf(sampling.json_schema)).replace(r'[^"\\]', r'[^"\\\x7F\x00-\x1F]')
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise InferenceError("the JSON schema cannot be used", found=str(error)[:120] or None) from None
