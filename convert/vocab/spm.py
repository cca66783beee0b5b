"""SentencePiece: tokenizer.model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from sb_edge.convert.vocab.tokens import TokenTable, TokenType, Vocabulary, read_added_tokens
from sb_edge.util.errors import TokenizerError

_ADDED_SCORE = -1000.0  # as in llama.cpp's converter
_UNUSED_SCORE = -10000.0
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_SPACE = "\u2581"


def load_sentencepiece(path: Path, vocab_size: int, tokenizer_config: Mapping[str, Any]) -> Vocabulary:
    """Read a tokenizer.model and the tokens that other files in its folder add.

    Args:
        path: the tokenizer.model.
        vocab_size: number of tokens of the model.
        tokenizer_config: content of tokenizer_config.json.

    Raises:
        TokenizerError: damaged, larger than the model's vocabulary, or not BPE: the engine merges by score,
            which is exact only for BPE.
    """
    data = path.read_bytes()
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        kind = _KINDS.get(_model_type(data), "unknown")
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(
            "is not a SentencePiece model", path=path, found=str(error), hint="fetch this file again"
        ) from None
    if kind != "bpe":
        raise TokenizerError("has an unsupported type", path=path, found=kind, expected="bpe")
    table = TokenTable(vocab_size)
    scores = [_UNUSED_SCORE] * vocab_size
    for number in range(processor.GetPieceSize()):
        table.put(number, processor.IdToPiece(number), _type(processor, number), path)
        scores[number] = processor.GetScore(number)
    for token in read_added_tokens(path.parent, tokenizer_config):
        text = token.text if token.type == TokenType.CONTROL else token.text.replace(_SPACE, " ")
        table.put(token.token_id, text, token.type, token.path)
        scores[token.token_id] = _ADDED_SCORE
    numbers = {
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "unk": processor.unk_id(),
        "pad": processor.pad_id(),
    }
    special = {name: number for name, number in numbers.items() if number >= 0}
    pieces = processor.EncodeAsPieces("a")
    return Vocabulary(
        "llama",
        "default",
        table,
        special,
        add_bos=True,
        scores=scores,
        add_space_prefix=bool(pieces) and pieces[0].startswith(_SPACE),
    )


def _type(processor: SentencePieceProcessor, number: int) -> TokenType:
    if processor.IsUnknown(number):
        return TokenType.UNKNOWN
    if processor.IsControl(number):
        return TokenType.CONTROL
    if processor.IsUnused(number):
        return TokenType.UNUSED
    return TokenType.BYTE if processor.IsByte(number) else TokenType.NORMAL


def _model_type(data: bytes) -> int:
    """trainer_spec.model_type of a ModelProto (fields 2 and 3 in sentencepiece_model.proto; default 1)."""
    for field, value in _fields(data):
        if field == 2 and isinstance(value, bytes):
            return next((kind for inner, kind in _fields(value) if inner == 3 and isinstance(kind, int)), 1)
    return 1


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message: number, and value or bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            if position >= len(data) or shift > 63:
                raise ValueError("a field is damaged")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError("a field has an unknown wire type")
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield key >> 3, data[position : position + size]
        position += size
