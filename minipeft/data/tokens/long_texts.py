"""Long texts as windows: sequences of at most --max-length tokens that overlap by --stride tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from minipeft.data.tokens.token_table import Array, ranges, starts_of
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError

POOLINGS = {"mean": "mean", "max": "amax"}  # of Tensor.scatter_reduce


@dataclass(frozen=True)
class LongTexts:
    """Settings of --long-text window, for texts that are longer than --max-length.

    Attributes:
        stride: Tokens that a window shares with the previous one.
        pooling: How the logits of a text's windows are combined, one of POOLINGS.
    """

    stride: int
    pooling: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> LongTexts | None:
        """Return the settings of a run's config.json; None where texts are truncated."""
        if settings.get("long_text", "truncate") != "window":
            return None
        return cls(settings["stride"], settings["window_pooling"])


@dataclass(frozen=True)
class Windows:
    """Which sequences are the windows of which example; the windows of an example lie one after the other.

    Attributes:
        pooling: One of POOLINGS.
        counts: (num_examples,), int64, windows of each example.
    """

    pooling: str
    counts: Array

    @classmethod
    def concatenate(cls, parts: Sequence[Any]) -> Windows:
        """Return the windows of chunks of examples as one."""
        names = [field.name for field in fields(cls) if field.name != "pooling"]
        return cls(parts[0].pooling, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.counts)

    def sequences(self, examples: Sequence[int] | Array) -> Array:
        """Return the indices of the windows of examples, in their order."""
        chosen = np.asarray(examples, dtype=np.int64)
        return ranges(starts_of(self.counts)[chosen], self.counts[chosen])

    @cached_property
    def owners(self) -> Array:
        """The example of each sequence."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def num_outputs(self) -> int:
        """The rows of logits before they are pooled: one for each sequence."""
        return len(self.owners)

    def outputs(self, sequences: Sequence[int], lengths: Array) -> tuple[Any, Any]:
        """Return which outputs of a batch of sequences count, and their rows of logits."""
        return slice(len(sequences)), sequences

    def known_labels(self, labels: Sequence[Any]) -> Sequence[Any]:
        """Return the labels of the examples that have a loss."""
        return labels

    def subset(self, examples: Array) -> Windows:
        """Return the windows of some examples."""
        return Windows(self.pooling, self.counts[examples])

    def pool(self, logits: Tensor) -> Tensor:
        """Return the mean or the maximum of the logits of each example's windows.

        Args:
            logits: (num_sequences, num_labels).

        Returns:
            (num_examples, num_labels).
        """
        owners = torch.from_numpy(self.owners)[:, None].expand_as(logits)
        pooled = logits.new_zeros(len(self), logits.shape[1])
        return pooled.scatter_reduce(0, owners, logits, POOLINGS[self.pooling], include_self=False)


def encode_windows(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, stride: int
) -> list[list[Encoding]]:
    """Return the windows of each text, or of each (text, pair); one where it has at most `max_length` tokens.

    Of a pair, the longer text is split and the other one is in every window. Where both have more than half of a
    sequence's tokens, the pair is truncated to one window, and counted in `tokenizer.truncated`.
    """
    before = tokenizer.truncated
    whole = tokenizer.encode_full(texts, pairs, max_length)
    tokenizer.truncated = before
    room = max_length - tokenizer.tokenizer.num_special_tokens_to_add(pairs is not None)
    if stride >= (room if pairs is None else room // 2):
        half = "" if pairs is None else " half of"
        raise MinipeftError(f"--stride {stride} is not below{half} the {room} tokens of text in a sequence. Lower it.")
    windows = [[encoding] for encoding in whole]
    long = [number for number, encoding in enumerate(whole) if encoding.overflowing]
    if pairs is None:
        strategies = {"longest_first": long}
    else:
        tokenizer.tokenizer.no_truncation()
        sides = [[side[number] for number in long] for side in (texts, pairs)]
        encoded = [tokenizer.tokenizer.encode_batch(side, add_special_tokens=False) for side in sides]
        strategies = {"only_first": [], "only_second": []}
        for number, first, second in zip(long, *encoded, strict=True):
            if min(len(first), len(second)) > room // 2:
                tokenizer.truncated += 1
            else:
                strategies["only_first" if len(first) > len(second) else "only_second"].append(number)
    for strategy, numbers in strategies.items():
        tokenizer.tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy, direction=tokenizer.side)
        inputs: list[Any] = [texts[n] if pairs is None else (texts[n], pairs[n]) for n in numbers]
        for number, encoding in zip(numbers, tokenizer.tokenizer.encode_batch(inputs), strict=True):
            windows[number] = [encoding, *encoding.overflowing]
    return windows
