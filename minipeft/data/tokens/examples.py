"""Examples as token ids, ready to be packed into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from minipeft.data.tasks.task import Split, Task
from minipeft.data.tokens.token_table import PackingConfig, TokenTable
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError
from minipeft.problems import problem_row

if TYPE_CHECKING:
    from minipeft.data.tokens.long_texts import LongTexts, Windows

FINGERPRINT_CHUNK = 4096  # sequences that are in memory at once


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: batches for training and evaluation are drawn from it.

    Attributes:
        split: The task and the labels; the texts may be left out.
        sequences: The token ids of each sequence.
        windows: Which sequences are the windows of which example; None where each example is one sequence.
        layer_cache: The output of the frozen layers (training/layer_cache.py); None where every step computes it.
        weights: (num_examples,), float64: factors on the losses of the examples in training; None for 1.
    """

    split: Split
    sequences: TokenTable
    windows: Windows | None = None
    layer_cache: Any = None
    weights: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.sequences) if self.windows is None else len(self.windows)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """The number of tokens of each sequence."""
        return self.sequences.lengths

    def sequences_of(self, examples: Sequence[int]) -> Sequence[int]:
        """Return the indices of the sequences of examples, in their order."""
        return examples if self.windows is None else self.windows.sequences(examples).tolist()

    def subset(self, mask: np.ndarray[Any, Any]) -> Encoded:
        """Return the examples where `mask` is true, in their order; their tokens are not copied."""
        indices = np.flatnonzero(mask)
        labels = self.split.task.problem.store(self.split.labels[index] for index in indices.tolist())
        split, weights = Split(self.split.task, [], None, labels), None if self.weights is None else self.weights[mask]
        windows = None if self.windows is None else self.windows.subset(indices)
        return Encoded(split, self.sequences.take(self.sequences_of(indices.tolist())), windows, weights=weights)

    @property
    def num_outputs(self) -> int:
        """The rows of logits that a model gives for the sequences: one for each of them, or for each word."""
        return len(self.sequences) if self.windows is None else self.windows.num_outputs

    def outputs(self, indices: list[int]) -> tuple[Any, Any]:
        """Return which outputs for a batch of sequences count, and their rows of logits."""
        return (slice(len(indices)), indices) if self.windows is None else self.windows.outputs(indices, self.lengths)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the token ids, token types, labels and weights, in their order."""
        digest = hashlib.sha256(self.lengths.tobytes() + (b"" if self.weights is None else self.weights.tobytes()))
        for start in range(0, len(self.sequences), FINGERPRINT_CHUNK):
            chunk = self.sequences.take(slice(start, start + FINGERPRINT_CHUNK))
            for values in chunk.concatenate():
                digest.update(b"" if values is None else values.tobytes())
        for start in range(0, len(self), FINGERPRINT_CHUNK):
            digest.update(repr(list(self.split.labels[start : start + FINGERPRINT_CHUNK])).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Examples:
    """The examples of a run.

    Attributes:
        train: Examples to train on.
        validation: Examples that are evaluated after every epoch.
        others: Further examples to evaluate, by the prefix of their metrics: "holdout", "mismatched".
        truncated: Number of texts that were longer than the maximum length.
        warnings: What may be a mistake in the examples, one line each.
        cache_seconds: Time in which the layer caches were computed, which counts as training time.
    """

    train: Encoded
    validation: Encoded
    others: Mapping[str, Encoded] = field(default_factory=dict)
    truncated: int = 0
    warnings: tuple[str, ...] = ()
    cache_seconds: float = 0.0


def encode_split(
    task: Task,
    chunks: Iterable[Split],
    tokenizer: Tokenizer,
    max_length: int,
    config: PackingConfig,
    long_texts: LongTexts | None = None,
) -> Encoded:
    """Tokenize a split chunk by chunk; 16 bytes per sequence and the labels stay in memory.

    Texts of more than `max_length` tokens are truncated, or split into windows with `long_texts`.
    """
    labels = task.problem.store()
    parts: list[Windows] = []

    def tables() -> Iterator[TokenTable]:
        for chunk in chunks:
            encoded = encode_texts(task, chunk.texts, chunk.pairs, tokenizer, max_length, long_texts)
            _check_fits(encoded.sequences, tokenizer, config)
            labels.extend(chunk.labels if encoded.windows is None else encoded.windows.known_labels(chunk.labels))
            parts.extend([] if encoded.windows is None else [encoded.windows])
            yield encoded.sequences

    sequences = TokenTable.from_chunks(tables(), with_types=config.type_vocab_size > 1)
    return Encoded(Split(task, [], None, labels), sequences, parts[0].concatenate(parts) if parts else None)


def encode_texts(
    task: Task,
    texts: list[Any],
    pairs: list[str] | None,
    tokenizer: Tokenizer,
    max_length: int,
    long_texts: LongTexts | None,
    labels: Sequence[Any] = (),
) -> Encoded:
    """Tokenize texts in memory, with or without labels."""
    split = Split(task, [], None, labels)
    if problem_row(task.problem.name).per_token:
        from minipeft.data.tokens.words import encode_words

        return Encoded(split, *encode_words(tokenizer, texts, max_length, long_texts))
    if long_texts is None:
        return Encoded(split, TokenTable.from_sequences(tokenizer.encode_full(texts, pairs, max_length)))
    from minipeft.data.tokens.long_texts import Windows, encode_windows

    sequences = encode_windows(tokenizer, texts, pairs, max_length, long_texts.stride)
    windows = Windows(long_texts.pooling, np.array(list(map(len, sequences)), dtype=np.int64))
    return Encoded(split, TokenTable.from_sequences(chain.from_iterable(sequences)), windows)


def _check_fits(table: TokenTable, tokenizer: Tokenizer, config: PackingConfig) -> None:
    """Raise where a model cannot take what its tokenizer gives."""
    types = np.zeros(1) if table.types is None or config.type_vocab_size <= 1 else table.types
    found = ""
    if not table.lengths.all():
        found = "no token, not even a special one"
    elif table.ids.max(initial=0) >= config.vocab_size:
        found = f"the token id {table.ids.max()}, outside the model's vocabulary of {config.vocab_size}"
    elif types.max(initial=0) >= max(1, config.type_vocab_size):
        found = f"the token type {types.max()}, outside the model's {config.type_vocab_size}"
    if found:
        raise MinipeftError(f"{tokenizer.folder}: the tokenizer gives a text {found}. Use the model's tokenizer.")
