"""What each attention layer of a base does for retrieval, without training.

One layer's attention sees the newest tokens only; what the model then no longer finds in its context, that
layer retrieves. Perplexity says little about it (arXiv 2512.20569, 2606.16429).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sb_edge.convert.checkpoint.base_model import fingerprint
from sb_edge.distill.base import Base, load_base
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.engine.cache import content_key
from sb_edge.evaluate.perplexity import held_out_text
from sb_edge.evaluate.recall_cases import (
    Kind,
    RecallCase,
    dictionary_case,
    facts_case,
    mean_by_kind,
    passkey_case,
)
from sb_edge.reference import fused_window as fused
from sb_edge.reference.device import pick_device
from sb_edge.reference.network import SpikingBrain
from sb_edge.util.errors import ConfigError
from sb_edge.util.output import json_fields, write_json
from sb_edge.util.progress import Advance, progress_bar
from sb_edge.util.user_cache import cache_root

SPAN = 16
"""Tokens that a limited layer sees."""

BATCH_TOKENS = 4096
PASSKEY_DISTANCE = 256
PAIRS = 10
TEXT_TOKENS = 2048
TEXT_CHUNK = 512
CASES = 40

SEED = 20270111
"""Random seed of the cases; `sb-edge eval --recall` has another."""


@dataclass(frozen=True)
class RecallScore:
    """Retrieval and prediction of a model.

    Attributes:
        log_p: mean log probability of an answer's tokens, nats, by kind of case.
        found: share of answers, 0 to 1, of which every token is the likeliest.
        loss: mean negative log-likelihood of plain text, nats.
    """

    log_p: dict[Kind, float]
    found: dict[Kind, float]
    loss: float


@dataclass(frozen=True)
class LimitedScore:
    """A model of which one layer, or one head of it, sees the newest tokens only.

    Attributes:
        layer: number of the layer.
        head: number of the query head, or of the key/value head with its query heads; None: all of the layer.
        score: retrieval and prediction of this model.
        damage: nats that an answer's tokens lose, mean over the kinds of cases.
    """

    layer: int
    head: int | None
    score: RecallScore
    damage: float


@dataclass(frozen=True)
class LayerRecall:
    """Result of `measure_layers`.

    Attributes:
        base: file name of the base.
        span: tokens that a limited layer sees.
        n_cases: number of cases, by kind.
        text_tokens: predicted tokens of plain text.
        whole: score of the base as it is.
        layers: one entry per layer.
        heads: one entry per head of the layers asked for.
        grouped: whether these are key/value heads.
    """

    base: str
    span: int
    n_cases: dict[Kind, int]
    text_tokens: int
    whole: RecallScore
    layers: tuple[LimitedScore, ...]
    heads: tuple[LimitedScore, ...] = ()
    grouped: bool = False

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return json_fields(self)


def choose_layers(base: Path, wanted: float, *, ignore_rope_scaling: bool = False) -> tuple[int, ...]:
    """The layers whose limits cost least, ascending: those that can become GLA.

    The cost is what a token of an answer loses and what a token of plain text loses, nats: some layers do
    not retrieve and are yet needed. A base is measured once; the cache keeps the result.

    Args:
        base: a checkpoint folder or a GGUF.
        wanted: a number of layers, or below 1 a share of them.
        ignore_rope_scaling: as `load_base`.

    Raises:
        CheckpointError, ConfigError, GgufError: see `load_base`, `measure_layers`.
        ConfigError: the base has fewer layers.
    """
    key = content_key({"base": fingerprint(base), "measure": [SEED, SPAN, CASES]})
    path = cache_root() / "layers" / f"{key}.json"
    if not path.is_file():
        loaded = load_base(base, pick_device(), ignore_rope_scaling=ignore_rope_scaling)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure_layers(loaded))
    found = json.loads(path.read_text(encoding="utf-8"))
    costs = [entry["damage"] + entry["score"]["loss"] - found["whole"]["loss"] for entry in found["layers"]]
    count = int(wanted) if wanted >= 1 else round(wanted * len(costs))
    if not 0 < count <= len(costs):
        raise ConfigError(
            "has too few layers",
            path=base,
            item="gla_layers",
            found=len(costs),
            expected=f"at least {count}",
        )
    return tuple(sorted(sorted(range(len(costs)), key=lambda layer: costs[layer])[:count]))


def recall_cases(
    encode: Callable[[str], list[int]], *, passkeys: int, dictionaries: int, facts: int, seed: int = SEED
) -> list[RecallCase]:
    """Cases of all kinds, the same for the same arguments."""
    rng = random.Random(seed)
    return [
        *(passkey_case(encode, rng, PASSKEY_DISTANCE) for _ in range(passkeys)),
        *(dictionary_case(encode, rng, PAIRS) for _ in range(dictionaries)),
        *(facts_case(encode, rng) for _ in range(facts)),
    ]


@dataclass(frozen=True)
class _Batch:
    """Sequences of one forward pass, and the tokens to predict in them.

    Attributes:
        tokens: [B, T]; short sequences end in tokens that nothing before them sees.
        rows, places: [n], positions whose successors count.
        targets: [n], those successors.
        owners: [n], number of the case of each, -1 for plain text.
    """

    tokens: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    owners: Tensor


def score_cases(
    model: SpikingBrain, cases: Sequence[RecallCase]
) -> tuple[dict[Kind, float], dict[Kind, float]]:
    """Mean log probability of an answer's tokens, and share of answers found, by kind."""
    tally = _Tally(cases)
    with torch.no_grad():
        for batch in _batches(cases, [], model.head.device):
            tally.add(batch, _log_p(model, batch, model.hidden(batch.tokens)))
    score = tally.score()
    return score.log_p, score.found


def measure_layers(
    base: Base,
    *,
    cases: int = CASES,
    span: int = SPAN,
    head_layers: Sequence[int] = (),
    grouped: bool = False,
    bf16: bool = False,
) -> LayerRecall:
    """Limit one layer after the other.

    The pass up to the limited layer is the base's own, so that all layers together cost half as much as a
    pass for each of them.

    Args:
        base: any Llama- or Qwen2-shaped model.
        cases: dictionaries and facts each; passkeys, which are longer, a third of that.
        span: tokens that a limited layer sees, its own included.
        head_layers: layers whose heads are limited one by one, too.
        grouped: limit the query heads of a key/value head together.
        bf16: matrix products in bfloat16.

    Raises:
        ConfigError: the base does not have one of `head_layers`.
        TokenizerError: the base has no tokenizer.
    """
    model, tokenizer = base.model, Tokenizer(base.reader)
    config = model.config
    n_layer = config.num_hidden_layers
    n_head = config.num_key_value_heads if grouped else config.num_attention_heads
    size = config.num_attention_heads // n_head
    for layer in head_layers:
        if not 0 <= layer < n_layer:
            raise ConfigError(
                "there is no such layer", path=base.reader.path, found=layer, expected=f"0 to {n_layer - 1}"
            )
    asked = recall_cases(tokenizer.encode, passkeys=max(1, cases // 3), dictionaries=cases, facts=cases)
    text = tokenizer.encode(held_out_text())[:TEXT_TOKENS]
    whole = _Tally(asked)
    limited: dict[tuple[int, int | None], _Tally] = {}
    for layer in range(n_layer):
        heads = range(n_head) if layer in head_layers else ()
        limited |= {(layer, head): _Tally(asked) for head in (None, *heads)}
    batches = _batches(asked, text, model.head.device)
    total = len(batches) * sum(n_layer - layer for layer, _ in limited)
    with (
        torch.no_grad(),
        torch.autocast(model.head.device.type, torch.bfloat16, enabled=bf16),
        progress_bar("limiting layers, passes through a layer", total) as advance,
    ):
        for batch in batches:
            _measure(model, batch, span, size, whole, limited, advance)
    reference = whole.score()
    found = [
        LimitedScore(layer, head, score, _damage(reference, score))
        for (layer, head), score in ((key, tally.score()) for key, tally in limited.items())
    ]
    return LayerRecall(
        base=base.reader.path.name,
        span=span,
        n_cases={kind: sum(case.kind == kind for case in asked) for kind in reference.log_p},
        text_tokens=whole.text_tokens,
        whole=reference,
        layers=tuple(entry for entry in found if entry.head is None),
        heads=tuple(entry for entry in found if entry.head is not None),
        grouped=grouped,
    )


def _damage(whole: RecallScore, limited: RecallScore) -> float:
    lost = [whole.log_p[kind] - limited.log_p[kind] for kind in whole.log_p]
    return sum(lost) / len(lost)


def _measure(
    model: SpikingBrain,
    batch: _Batch,
    span: int,
    size: int,
    whole: _Tally,
    limited: dict[tuple[int, int | None], _Tally],
    advance: Advance,
) -> None:
    """Add what the base and each of its limited forms say about a batch."""
    blocks: list[Any] = list(model.model.layers)
    x = model.model.embeddings(batch.tokens)
    for layer, block in enumerate(blocks):
        for head in [head for at, head in limited if at == layer]:
            heads = slice(None) if head is None else slice(head * size, (head + 1) * size)
            y = _limited_block(block, x, span, heads)
            for later in blocks[layer + 1 :]:
                y, _ = later(y, (), 0)
            limited[layer, head].add(batch, _log_p(model, batch, model.model.norm(y)))
            advance(len(blocks) - layer)
        x, _ = block(x, (), 0)
    whole.add(batch, _log_p(model, batch, model.model.norm(x)))


def _limited_block(block: Any, x: Tensor, span: int, heads: slice) -> Tensor:
    """A block's output while some query heads of its attention see `span` tokens."""
    attend = block.attn.attend

    def limit(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        narrow = fused.windowed_attention(q, k, v, span)
        if heads == slice(None):
            return narrow
        mixed: Tensor = attend(q, k, v, window).clone()
        mixed[:, :, heads] = narrow[:, :, heads]
        return mixed

    block.attn.attend = limit
    try:
        output: Tensor = block(x, (), 0)[0]
    finally:
        block.attn.attend = attend
    return output


def _log_p(model: SpikingBrain, batch: _Batch, hidden: Tensor) -> Tensor:
    """Log probabilities of what follows the batch's positions, [n, vocab], float32."""
    return functional.linear(hidden[batch.rows, batch.places], model.head).float().log_softmax(-1)


class _Tally:
    """Log probabilities of a model's answers and of plain text."""

    def __init__(self, cases: Sequence[RecallCase]) -> None:
        self._cases = cases
        self._log_p: list[list[float]] = [[] for _ in cases]
        self._found = [True] * len(cases)
        self._text: list[float] = []

    @property
    def text_tokens(self) -> int:
        """Predicted tokens of plain text."""
        return len(self._text)

    def add(self, batch: _Batch, log_p: Tensor) -> None:
        """The predictions for a batch's positions."""
        likely = log_p.argmax(-1) == batch.targets
        wanted = log_p.gather(1, batch.targets[:, None])[:, 0]
        for owner, value, right in zip(batch.owners.tolist(), wanted.tolist(), likely.tolist(), strict=True):
            if owner < 0:
                self._text.append(-value)
            else:
                self._log_p[owner].append(value)
                self._found[owner] &= right

    def score(self) -> RecallScore:
        """The means."""
        values = [sum(part) / len(part) for part in self._log_p]
        return RecallScore(
            log_p=mean_by_kind(self._cases, values),
            found=mean_by_kind(self._cases, [float(right) for right in self._found]),
            loss=sum(self._text) / len(self._text) if self._text else math.nan,
        )


def _batches(cases: Sequence[RecallCase], text: Sequence[int], device: torch.device) -> list[_Batch]:
    """Sequences of similar length together."""
    sequences = [(owner, [*case.prompt, *case.answer], len(case.answer)) for owner, case in enumerate(cases)]
    chunks = (list(text[at : at + TEXT_CHUNK]) for at in range(0, len(text), TEXT_CHUNK))
    sequences += [(-1, chunk, len(chunk) - 1) for chunk in chunks if len(chunk) > 1]
    sequences.sort(key=lambda sequence: len(sequence[1]))
    return [_batch(part, device) for part in _parts(sequences)]


def _parts(
    sequences: Iterable[tuple[int, list[int], int]],
) -> Iterator[list[tuple[int, list[int], int]]]:
    """Ascending sequences in parts of at most `BATCH_TOKENS`, the padding included."""
    part: list[tuple[int, list[int], int]] = []
    for sequence in sequences:
        if part and (len(part) + 1) * len(sequence[1]) > BATCH_TOKENS:
            yield part
            part = []
        part.append(sequence)
    if part:
        yield part


def _batch(part: Sequence[tuple[int, list[int], int]], device: torch.device) -> _Batch:
    tokens = torch.zeros(len(part), len(part[-1][1]), dtype=torch.long)
    rows, places, owners = [], [], []
    for row, (owner, sequence, counted) in enumerate(part):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        for place in range(len(sequence) - counted - 1, len(sequence) - 1):
            rows.append(row)
            places.append(place)
            owners.append(owner)
    row_index, place_index = torch.tensor(rows), torch.tensor(places)
    return _Batch(
        tokens.to(device),
        row_index.to(device),
        place_index.to(device),
        tokens[row_index, place_index + 1].to(device),
        torch.tensor(owners),
    )
