"""Text that the base writes itself, many sequences at once, seeded by varied prompts."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import torch
from torch import Tensor

from sb_edge.distill.base import Base
from sb_edge.distill.text.sources import Document
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.distill.text.turns import turns_of
from sb_edge.reference.network import Cache, SpikingBrain
from sb_edge.util.progress import progress_bar

SEQUENCES = 64
LENGTH = 256
"""Tokens an answer, at most."""

TEMPERATURE = 0.9
TOP_K = 64
"""Candidates, at most: finding them takes a fraction of the time of ordering a whole vocabulary."""
TOP_P = 0.95

LICENCE = "the base model's own output"

REQUESTS = (
    "Explain {} to a child.",
    "Write a short story about {}.",
    "What are the most important facts about {}?",
    "Give me step-by-step advice on {}.",
    "Write a letter to a friend about {}.",
    "Compare two opinions on {}.",
    "Write a dialogue between two people about {}.",
    "What questions would you ask an expert on {}?",
    "Summarise the history of {}.",
    "Describe {} with a vivid example.",
    "List common mistakes concerning {} and how to avoid them.",
    "Write a news report about {}.",
    "Make a Markdown table with five rows and three columns about {}.",
    "Write a manual on {} with headings, numbered steps and a list of warnings.",
    "Write a Python program that has to do with {}, with comments.",
    "Write a JavaScript function that has to do with {}.",
    "Write an interview with somebody who knows all about {}.",
    "Write a scene of a play in which three people quarrel about {}.",
    "Write an essay of several paragraphs on {}.",
    "Tell me a joke or an anecdote about {}.",
    "Write a page of a diary that mentions {}.",
    "What is {}? Answer in one sentence.",
    "Write five questions and answers for a quiz on {}.",
    "Write a poem about {}.",
)

TOPICS = (
    "the sea", "a lighthouse", "bread", "the moon", "bees", "a lost key", "friendship", "rain", "volcanoes",
    "learning to swim", "the human heart", "bicycles", "maps", "an old library", "music", "trains", "chess",
    "planting a garden", "sleep", "electricity", "the alphabet", "winter", "markets", "glass",
    "migration of birds", "fractions", "honesty", "a power cut", "rivers", "cooking for many guests",
    "the first day at school", "clocks", "dinosaurs", "programming a computer", "money", "paper",
    "a mountain village", "healthy teeth", "languages", "the theatre", "stars", "bridges", "dogs",
    "forests", "taking photographs", "a difficult decision", "sound", "medicine", "an island", "recycling",
    "the wheel", "painting", "writing a report", "gravity", "tea", "cities", "a football match", "insects",
    "waiting", "the internet", "sewing", "earthquakes", "neighbours", "deserts",
)  # fmt: skip


def sampled_documents(
    base: Base, tokenizer: Tokenizer, tokens: int, seed: int, *, bf16: bool = False
) -> Iterator[Document]:
    """Prompts with the base's answers, at least `tokens` of them, each as one document.

    Args:
        base: it answers.
        tokenizer: its own.
        tokens: to write.
        seed: of prompts and answers; the same gives the same on the same device.
        bf16: the answers come from a copy of the base in bfloat16.
    """
    model = copy.deepcopy(base.model).bfloat16() if bf16 else base.model
    ends = _ends(base, tokenizer)
    prompts = _prompts(tokenizer, seed)
    generator = torch.Generator(base.model.head.device).manual_seed(seed)
    written = number = 0
    with progress_bar("sampling from the base, tokens", tokens) as advance:
        while written < tokens:
            batch = [next(prompts) for _ in range(SEQUENCES)]
            written_by = answers(model, tokenizer, batch, generator, ends)
            for prompt, answer in zip(batch, written_by, strict=True):
                yield Document(
                    prompt + tokenizer.decode(answer), f"sample {seed}/{number}", LICENCE, "samples"
                )
                number += 1
                written += len(answer)
                advance(len(answer))


def _prompts(tokenizer: Tokenizer, seed: int) -> Iterator[str]:
    """Requests in the turn format of the tokenizer's special tokens, in random order, over and over."""
    order = random.Random(seed)
    pairs = [request.format(topic) for request in REQUESTS for topic in TOPICS]
    turns = turns_of(tokenizer)
    frame = turns.prompt if turns else "{}\n\n"
    while True:
        order.shuffle(pairs)
        yield from (frame.format(pair) for pair in pairs)


@torch.no_grad()
def answers(
    model: SpikingBrain,
    tokenizer: Tokenizer,
    prompts: list[str],
    generator: torch.Generator,
    stops: set[int],
    length: int = LENGTH,
) -> list[list[int]]:
    """What a model answers; long prompts lose their first tokens, so that none is padded.

    Args:
        model: the base.
        tokenizer: its own.
        prompts: of one batch.
        generator: on the model's device.
        stops: Tokens that end an answer and are excluded from it.
        length: tokens, at most; an answer that ends earlier is shorter.
    """
    place = model.head.device
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    shortest = min(map(len, encoded))
    pending = torch.tensor([tokens[-shortest:] for tokens in encoded], device=place)
    ends = torch.tensor(sorted(stops), device=place)
    cache = Cache()
    columns: list[Tensor] = []
    running = torch.ones(len(prompts), dtype=torch.bool, device=place)
    while len(columns) < length and bool(running.any()):
        logits = model.hidden(pending, cache)[:, -1] @ model.head.mT
        pending = _draw(logits, generator)
        columns.append(pending[:, 0])
        running &= ~torch.isin(pending[:, 0], ends)
    rows: list[list[int]] = torch.stack(columns, dim=1).tolist()
    return [_until(row, stops) for row in rows]


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """[B, vocab] -> [B, 1]: one of the `TOP_K` likeliest tokens, up to `TOP_P` of their probability."""
    best, order = logits.float().topk(min(TOP_K, logits.shape[-1]), dim=-1)
    probabilities = (best / TEMPERATURE).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before > TOP_P, 0.0)
    return order.gather(1, torch.multinomial(kept, 1, generator=generator))


def _ends(base: Base, tokenizer: Tokenizer) -> set[int]:
    eos = base.reader.shape.eos_token_id
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return {tokenizer.end, *listed}


def _until(row: list[int], stops: set[int]) -> list[int]:
    """A row up to its first stop token, that one left out."""
    return row[: next((at for at, token in enumerate(row) if token in stops), len(row))]
