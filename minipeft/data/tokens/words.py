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
from minipeft.data.tokens.token_table import TokenTable
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError
from minipeft.problems.problem import IGNORE_INDEX

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class WordWindows(Windows):
    """Which sequences belong to which example, and which tokens are the first ones of words.

    A word is in several windows where they overlap, and has its label in one of them.

    Attributes:
        word_counts: (num_examples,), words of each example.
        tokens: (num_pieces,), the position in its sequence of the first token of a word.
        words: (num_pieces,), the number of that word in its example.
        piece_starts: (num_sequences + 1,); sequence i has the pieces piece_starts[i] to piece_starts[i + 1].
    """

    word_counts: Array
    tokens: Array
    words: Array
    piece_starts: Array

    @cached_property
    def word_starts(self) -> Array:
        """The number of the first word of each example among the words of all."""
        return np.concatenate([[0], np.cumsum(self.word_counts)])

    @cached_property
    def rows(self) -> Array:
        """The number of the word of each piece among the words of all examples."""
        return np.repeat(self.word_starts[self.owners], np.diff(self.piece_starts)) + self.words

    @property
    def num_outputs(self) -> int:
        """The rows of logits: the words of all examples."""
        return int(self.word_starts[-1])

    def outputs(self, sequences: Sequence[int], lengths: Array) -> tuple[Array, Array]:
        """Return the tokens of a batch of sequences that stand for words, and the rows of these words."""
        chosen = lengths[sequences]
        begins = np.cumsum(chosen) - chosen
        pieces = [np.arange(self.piece_starts[one], self.piece_starts[one + 1]) for one in sequences]
        found = np.concatenate([np.zeros(0, np.int64), *pieces])
        return np.repeat(begins, [len(one) for one in pieces]) + self.tokens[found], self.rows[found]

    def token_labels(self, sequences: Sequence[int], lengths: Array, labels: Sequence[Any]) -> list[list[int]]:
        """Return a label for each token of sequences: that of its word for a first token, else IGNORE_INDEX."""
        found = []
        for one in sequences:
            row = np.full(lengths[one], IGNORE_INDEX)
            pieces = slice(self.piece_starts[one], self.piece_starts[one + 1])
            row[self.tokens[pieces]] = np.asarray(labels[self.owners[one]], dtype=np.int64)[self.words[pieces]]
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
        return [tuple(part.tolist()) for part in np.split(flat, self.word_starts[1:-1])]

    def subset(self, examples: Array) -> WordWindows:
        """Return the windows of some examples."""
        sequences = self.sequences(examples)
        pieces = [slice(self.piece_starts[one], self.piece_starts[one + 1]) for one in sequences]
        tokens, words = (np.concatenate([values[one] for one in pieces]) for values in (self.tokens, self.words))
        starts = np.concatenate([[0], np.cumsum(np.diff(self.piece_starts)[sequences])])
        of_sequences = np.concatenate([[0], np.cumsum(self.counts()[examples])])
        return WordWindows(of_sequences, self.pooling, self.word_counts[examples], tokens, words, starts)

    @classmethod
    def concatenate(cls, parts: Sequence[WordWindows]) -> WordWindows:
        """Return the windows of chunks of examples as one."""

        def joined(starts: list[Array]) -> Array:
            return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(one) for one in starts]))])

        counts, tokens, words = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("word_counts", "tokens", "words")
        )
        starts, piece_starts = (joined([getattr(part, name) for part in parts]) for name in ("starts", "piece_starts"))
        return cls(starts, parts[0].pooling, counts, tokens, words, piece_starts)


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
        raise MinipeftError(
            f"--stride {stride} is not below the {room} tokens of text in a sequence. Choose a smaller one."
        )
    sequences: list[list[int]] = []
    counts, tokens, words, pieces = [], [], [], [0]
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
            pieces.append(len(tokens))
    starts, word_counts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), np.array([len(row) for row in rows])
    places, owners_of, piece_starts = (np.array(values, dtype=np.int64) for values in (tokens, words, pieces))
    word_windows = WordWindows(starts, "mean", word_counts, places, owners_of, piece_starts)
    return TokenTable.from_sequences(sequences), word_windows


def cut_windows(bounds: Sequence[int], room: int, stride: int) -> list[tuple[int, int, int]]:
    """Return windows of at most `room` tokens that begin and end between words.

    Args:
        bounds: The first token of each word, and the number of tokens.
        room: Tokens of a window.
        stride: Tokens that a window shares with the previous one, at most.

    Returns:
        The first token of each window, the one after its last, and the first one that no window had before.
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
