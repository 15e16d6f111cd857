"""DeBERTa-v3's spm.model → a tokenizer: its Unigram model and normalization, which the `tokenizers` library has too.

A SentencePiece model is a protocol buffer: fields, each a number and a value. A few of them are read here, so that
neither `sentencepiece` nor `protobuf` is needed.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers

from minipeft.files import read_small

# sentencepiece_model.proto: ModelProto, and SentencePiece, TrainerSpec and NormalizerSpec within it.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
USER_DEFINED = 4  # a value of TYPE
MODEL_TYPE, BYTE_FALLBACK, UNK_ID = 3, 35, 40
UNIGRAM = 1  # a value of MODEL_TYPE
CHARSMAP = 2
SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")  # what DeBERTa's template and padding need


def read_spm(path: str | Path) -> Tokenizer:
    """Return the model and the normalization of a DeBERTa-v3 checkpoint; pieces that a user defined are added tokens.

    Raises:
        ValueError: for a file that is damaged, is not a Unigram model, or lacks DeBERTa's special tokens.
    """
    content = list(_fields(read_small(Path(path))))
    pieces = [dict(_fields(value)) for number, value in content if number == PIECES]
    specs = {number: dict(_fields(value)) for number, value in content if number in (TRAINER, NORMALIZER)}
    trainer = specs.get(TRAINER, {})
    if trainer.get(MODEL_TYPE, UNIGRAM) != UNIGRAM:
        raise ValueError("it is not a Unigram model")
    vocabulary = [(piece[PIECE].decode(), struct.unpack("<f", piece[SCORE])[0]) for piece in pieces]
    names = [name for name, _ in vocabulary]
    if missing := [name for name in SPECIALS if name not in names]:
        raise ValueError(f"it has no piece {missing[0]}, so it is not DeBERTa's")
    tokenizer = Tokenizer(
        models.Unigram(vocabulary, trainer.get(UNK_ID, 0), byte_fallback=bool(trainer.get(BYTE_FALLBACK, 0)))
    )
    charsmap = specs.get(NORMALIZER, {}).get(CHARSMAP)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Precompiled(charsmap)] if charsmap else []), *spm_normalizers()]
    )
    own = [name for name, piece in zip(names, pieces, strict=True) if piece.get(TYPE) == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in own])
    return tokenizer


def spm_normalizers() -> list[normalizers.Normalizer]:
    """Return what SentencePiece does after its map of characters: runs of spaces are one space, none at the ends."""
    return [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field: an int, or the bytes of a string, a float or a message."""
    place = 0

    def number() -> int:
        """Read a number of 7 bits a byte, the lowest first."""
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(message):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        length = {1: 8, 2: None, 5: 4}[kind]
        size = number() if length is None else length
        if place + size > len(message):
            raise ValueError("it ends early")
        yield key >> 3, message[place : place + size]
        place += size
