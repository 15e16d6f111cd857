"""Rows of words → token ids, and which token of which sequence stands for which word."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.data.tokens.long_texts import LongTexts, Windows
from minipeft.data.tokens.token_table import Array, TokenTable, ranges, starts_of
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError
from minipeft.problems.problem import IGNORE_INDEX


@dataclass(frozen=True)
class WordWindows(Windows):
    """Which sequences belong to which example, and which tokens are the first ones of words.

    A word is in several windows where they overlap, and has its label in one of them.

    Attributes:
        word_counts: (num_examples,), words of each example.
        piece_counts: (num_sequences,), first tokens of words in each sequence.
        tokens: (num_pieces,), the position in its sequence of the first token of a word.
        words: (num_pieces,), the number of that word in its example.
    """

    word_counts: Array
    piece_counts: Array
    tokens: Array
    words: Array

    @cached_property
    def rows(self) -> Array:
        """The number of the word of each piece among the words of all examples."""
        return np.repeat(starts_of(self.word_counts)[self.owners], self.piece_counts) + self.words

    @property
    def num_outputs(self) -> int:
        """The rows of logits: the words of all examples."""
        return int(self.word_counts.sum())

    def pieces(self, sequences: Sequence[int] | Array) -> Array:
        """Return the indices of the pieces of sequences, in their order."""
        return ranges(starts_of(self.piece_counts)[sequences], self.piece_counts[sequences])

    def outputs(self, sequences: Sequence[int], lengths: Array) -> tuple[Array, Array]:
        """Return the tokens of a batch of sequences that stand for words, and the rows of these words."""
        pieces = self.pieces(sequences)
        starts = np.repeat(starts_of(lengths[sequences]), self.piece_counts[sequences])
        return starts + self.tokens[pieces], self.rows[pieces]

    def token_labels(self, sequences: Sequence[int], lengths: Array, labels: Sequence[Any]) -> list[list[int]]:
        """Return a label for each token of sequences: that of its word for a first token, else IGNORE_INDEX."""
        found = []
        for sequence in sequences:
            row = np.full(lengths[sequence], IGNORE_INDEX)
            pieces = self.pieces([sequence])
            row[self.tokens[pieces]] = np.asarray(labels[self.owners[sequence]], dtype=np.int64)[self.words[pieces]]
            found.append(row.tolist())
        return found

    def pool(self, logits: Tensor) -> Tensor:
        """Return the logits with -inf for the words that no token stands for."""
        unknown = torch.ones(self.num_outputs, dtype=torch.bool)
        unknown[torch.from_numpy(self.rows)] = False
        return logits.masked_fill(unknown[:, None], -torch.inf)

    def known_labels(self, labels: Sequence[Any]) -> list[tuple[int, ...]]:
        """Return the labels of each example, with IGNORE_INDEX for the words that no token stands for."""
        if not labels:
            return []
        flat = np.full(self.num_outputs, IGNORE_INDEX)
        flat[self.rows] = np.fromiter(chain.from_iterable(labels), dtype=np.int64)[self.rows]
        return [tuple(part.tolist()) for part in np.split(flat, np.cumsum(self.word_counts)[:-1])]

    def subset(self, examples: Array) -> WordWindows:
        """Return the windows of some examples."""
        sequences = self.sequences(examples)
        pieces = self.pieces(sequences)
        counts = self.counts[examples], self.word_counts[examples], self.piece_counts[sequences]
        return WordWindows(self.pooling, *counts, self.tokens[pieces], self.words[pieces])


def encode_words(
    tokenizer: Tokenizer, rows: Sequence[list[str]], max_length: int, long_texts: LongTexts | None
) -> tuple[TokenTable, WordWindows]:
    """Tokenize rows of words as transformers does with is_split_into_words.

    A row of more than `max_length` tokens is truncated, or with `long_texts` cut into windows at the starts of words.
    """
    before, after = tokenizer.special_tokens
    room = max_length - len(before) - len(after)
    stride = 0 if long_texts is None else long_texts.stride
    if stride >= room:
        raise MinipeftError(f"--stride {stride} is not below the {room} tokens of text in a sequence. Lower it.")
    sequences: list[list[int]] = []
    counts, piece_counts, tokens, words = [], [], [], []
    for encoding in tokenizer.encode_words(rows):
        owners = encoding.word_ids
        firsts = [place for place, word in enumerate(owners) if place == 0 or word != owners[place - 1]]
        bounds = [*firsts, len(owners)]
        windows = [(0, room, 0)] if long_texts is None else cut_windows(bounds, room, stride)
        tokenizer.truncated += long_texts is None and len(owners) > room
        counts.append(len(windows))
        for begin, end, labelled in windows:
            sequences.append([*before, *encoding.ids[begin:end], *after])
            chosen = firsts[bisect_left(firsts, labelled) : bisect_left(firsts, end)]
            tokens += [place - begin + len(before) for place in chosen]
            words += [owners[place] for place in chosen]
            piece_counts.append(len(chosen))
    columns = (counts, [len(row) for row in rows], piece_counts, tokens, words)
    word_windows = WordWindows("mean", *(np.array(values, dtype=np.int64) for values in columns))
    return TokenTable.from_sequences(sequences), word_windows


def cut_windows(bounds: Sequence[int], room: int, stride: int) -> list[tuple[int, int, int]]:
    """Return windows of at most `room` tokens that begin and end between words, and share at most `stride` tokens.

    `bounds` has the first token of each word, and the number of tokens. A window is its first token, the one after its
    last, and the first one that no window had before.
    """
    windows, begin, labelled = [], 0, 0
    while True:
        end = bounds[bisect_right(bounds, begin + room) - 1]
        following = end
        if end <= begin < bounds[-1]:  # a word that is longer than a window is cut
            end, following = begin + room, bounds[bisect_right(bounds, begin)]
        windows.append((begin, end, labelled))
        if following >= bounds[-1]:
            return windows
        labelled = following
        begin = max(bounds[bisect_left(bounds, following - stride)], bounds[bisect_right(bounds, begin)])
