"""Examples as token ids, ready to be packed into batches."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding

from minipeft.data.batches.packing import PackedBatch, pack
from minipeft.data.batches.sampling import draw_mask
from minipeft.data.tasks.task import Split, Task
from minipeft.data.tokens.long_texts import LongTexts, Windows, encode_windows
from minipeft.data.tokens.token_table import TokenTable
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError
from minipeft.model.config import EncoderConfig
from minipeft.problems.multi_label import multi_hot


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: batches for training and evaluation are drawn from it.

    Attributes:
        split: its task and labels; the texts may be left out.
        sequences: lists of int or tokenizers.Encoding, as `pack` takes them.
        lengths: tokens of each sequence.
        windows: which sequences are the windows of which example; None where each example is one sequence.
    """

    split: Split
    sequences: Sequence[Any]
    lengths: Sequence[int]
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.sequences) if self.windows is None else len(self.windows)

    def sequences_of(self, examples: Sequence[int]) -> Sequence[int]:
        """Return the sequences of examples, in their order."""
        return examples if self.windows is None else self.windows.sequences(examples)

    @classmethod
    def unlabelled(cls, task: Task, sequences: list[Any]) -> Encoded:
        """Texts to predict, without labels."""
        return cls(Split(task, [], None, []), sequences, [len(sequence.ids) for sequence in sequences])

    def subset(self, chosen: Sequence[int]) -> Encoded:
        """The examples where `chosen` is true, in their order."""
        indices: Sequence[int] = array("q", (index for index, one in enumerate(chosen) if one))
        labels = label_store(self.split.task, (self.split.labels[index] for index in indices))
        windows = self.windows
        if windows is not None:
            counts, pooling = windows.counts(), windows.pooling
            windows = Windows.of_counts([counts[index] for index in indices], pooling)
            indices = self.sequences_of(indices)
        lengths = array("i", (self.lengths[index] for index in indices))
        return Encoded(Split(self.split.task, [], None, labels), _Subset(self.sequences, indices), lengths, windows)

    def batch(self, indices: list[int], config: EncoderConfig) -> PackedBatch:
        """The sequences at `indices`, packed with their labels; the windows of an example share its weight."""
        owners = indices if self.windows is None else [self._owners[index] for index in indices]
        labels: Any = [self.split.labels[owner] for owner in owners]
        if self.split.task.multilabel:
            labels = multi_hot(labels, config.num_labels)
        batch = pack([self.sequences[index] for index in indices], labels, config=config)
        if self.windows is None:
            return batch
        starts = self.windows.starts
        return replace(batch, weights=torch.tensor([1 / (starts[one + 1] - starts[one]) for one in owners]))

    @cached_property
    def _owners(self) -> Sequence[int]:
        """The example of each sequence, if there are windows."""
        assert self.windows is not None
        return self.windows.owners()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the token ids, token types and labels, in their order."""
        digest = hashlib.sha256(self.length_fingerprint.encode())
        for sequence in self.sequences:
            digest.update(array("i", getattr(sequence, "ids", sequence)).tobytes())
            digest.update(array("b", getattr(sequence, "type_ids", ())).tobytes())
        return digest.hexdigest()

    @cached_property
    def length_fingerprint(self) -> str:
        """A hash of the lengths and labels alone, which the checkpoints of older versions hold."""
        lengths = np.asarray(self.lengths, dtype=np.int64).tobytes()
        if self.split.task.multilabel:
            return hashlib.sha256(lengths + repr(list(self.split.labels)).encode()).hexdigest()
        return hashlib.sha256(lengths + np.asarray(self.split.labels, dtype=np.float64).tobytes()).hexdigest()


def label_store(task: Task, labels: Iterable[Any] = ()) -> Any:
    """Return labels as an array, or as a list for multi-label."""
    return list(labels) if task.multilabel else array("d" if task.is_regression else "q", labels)


class _Subset(Sequence[Any]):
    """Some of many sequences, which are not copied."""

    def __init__(self, sequences: Sequence[Any], indices: Sequence[int]) -> None:
        self.sequences, self.indices = sequences, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.sequences[self.indices[index]]


@dataclass(frozen=True)
class Examples:
    """The examples of a run.

    Attributes:
        train: to train on.
        validation: evaluated after every epoch.
        others: evaluated as well; the name is the prefix of their figures: "holdout", "mismatched".
        truncated: how many texts were longer than the maximum length.
    """

    train: Encoded
    validation: Encoded
    others: Mapping[str, Encoded] = field(default_factory=dict)
    truncated: int = 0


def hold_out(examples: Encoded, fraction: float, seed: int) -> tuple[Encoded, Encoded]:
    """Split examples at random into those to train on and a `fraction` held out; a function of the seed.

    The split is stratified by class if `task.stratified`.

    Raises:
        MinipeftError: where one of the two would be empty.
    """
    task = examples.split.task
    mask = draw_mask(examples.split.labels, fraction, seed, task.stratified and task.has_classes)
    if not 0 < round(len(examples) * fraction) < len(examples) or not 0 < sum(mask) < len(examples):
        raise MinipeftError(
            f"--holdout {fraction:g} of {len(examples)} training examples is {'all' if fraction > 0.5 else 'none'}. "
            "Choose another fraction."
        )
    return examples.subset([not one for one in mask]), examples.subset(mask)


def encode_split(
    task: Task,
    chunks: Iterable[Split],
    tokenizer: Tokenizer,
    max_length: int,
    config: EncoderConfig,
    long_texts: LongTexts | None = None,
) -> Encoded:
    """Tokenize a split chunk by chunk; 12 bytes per example and its label stay in memory.

    Texts of more than `max_length` tokens are truncated, or split into windows with `long_texts`.

    Raises:
        MinipeftError: for a text whose token ids the model does not have: the tokenizer is not the model's.
    """
    labels = label_store(task)

    counts = array("i")

    def encodings() -> Iterator[Encoding]:
        for chunk in chunks:
            if long_texts is None:
                yield from tokenizer.encode_full(chunk.texts, chunk.pairs, max_length)
            else:
                for found in encode_windows(tokenizer, chunk.texts, chunk.pairs, max_length, long_texts.stride):
                    yield from found
                    counts.append(len(found))
            labels.extend(chunk.labels)

    sequences = TokenTable(_checked(encodings(), tokenizer, config), with_types=config.type_vocab_size > 1)
    windows = None if long_texts is None else Windows.of_counts(counts, long_texts.pooling)
    return Encoded(Split(task, [], None, labels), sequences, sequences.lengths, windows)


def encode_texts(
    task: Task,
    texts: list[str],
    pairs: list[str] | None,
    tokenizer: Tokenizer,
    max_length: int,
    long_texts: LongTexts | None,
    labels: Sequence[Any] = (),
) -> Encoded:
    """Tokenize texts in memory, with or without labels."""
    if long_texts is None:
        found, windows = tokenizer.encode_full(texts, pairs, max_length), None
    else:
        by_text = encode_windows(tokenizer, texts, pairs, max_length, long_texts.stride)
        found = list(chain.from_iterable(by_text))
        windows = Windows.of_counts(list(map(len, by_text)), long_texts.pooling)
    return Encoded(Split(task, [], None, labels), found, [len(one.ids) for one in found], windows)


def _checked(encodings: Iterable[Encoding], tokenizer: Tokenizer, config: EncoderConfig) -> Iterator[Encoding]:
    for encoding in encodings:
        if not encoding.ids:
            raise MinipeftError(
                f"{tokenizer.folder}: the tokenizer gives a text no token, not even a special one. "
                "Use the model's tokenizer."
            )
        if max(encoding.ids) >= config.vocab_size:
            raise MinipeftError(
                f"{tokenizer.folder}: the tokenizer gives a text the token id {max(encoding.ids)}, "
                f"outside the model's vocabulary of {config.vocab_size}. Use the model's tokenizer."
            )
        if config.type_vocab_size > 1 and max(encoding.type_ids) >= config.type_vocab_size:
            raise MinipeftError(
                f"{tokenizer.folder}: the tokenizer gives a text the token type {max(encoding.type_ids)}, "
                f"outside the model's {config.type_vocab_size}. Use the model's tokenizer."
            )
        yield encoding
