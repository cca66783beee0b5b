"""Choosing the next token, with the engine's own samplers in llama.cpp's order."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sb_edge.runtime.binding import clear_log, last_problem, library, quiet_stderr
from sb_edge.runtime.session import Session
from sb_edge.util.errors import InferenceError


@dataclass(frozen=True)
class Sampling:
    """llama.cpp's sampling options and their defaults.

    Attributes:
        temperature: 0 is greedy.
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


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """A chain of samplers; reads the logits of a session's last output."""

    def __init__(self, session: Session, sampling: Sampling) -> None:
        lib = library()
        self._session = session
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for sampler in self._samplers(sampling):
            lib.llama_sampler_chain_add(self._chain, sampler)

    def _samplers(self, sampling: Sampling) -> list[Any]:
        lib = library()
        chain = []
        grammar = _grammar(sampling)
        if grammar is not None:
            chain.append(self._grammar_sampler(grammar))
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if penalties != (1.0, 0.0, 0.0):
            n_vocab = self._session.model.n_vocab
            chain.append(lib.llama_sampler_init_penalties(n_vocab, sampling.repeat_last_n, *penalties))
        if sampling.temperature <= 0:
            return [*chain, lib.llama_sampler_init_greedy()]
        seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
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
        vocab = self._session.model.vocab
        with quiet_stderr():  # the engine prints the grammar as well
            sampler = library().llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        if not sampler:
            raise InferenceError(
                "the grammar is not valid", found=last_problem(), expected="GBNF with a rule named root"
            )
        return sampler

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        library().llama_sampler_free(self._chain)

    def next_token(self) -> int:
        """Choose a token from the last logits, and remember it for the repeat penalty."""
        return int(library().llama_sampler_sample(self._chain, self._session.handle, -1))


def _grammar(sampling: Sampling) -> str | None:
    """The grammar as GBNF, from whichever of the two options is given."""
    if sampling.json_schema is None:
        return sampling.grammar
    if sampling.grammar is not None:
        raise InferenceError("a grammar and a JSON schema exclude each other", hint="give one of them")
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(sampling.json_schema))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise InferenceError("the JSON schema cannot be used", found=str(error)[:120] or None) from None
