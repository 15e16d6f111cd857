"""Text for pretraining → blocks of tokens, masked anew each time they are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.data.batching import PackedBatch
from minipeft.data.rows import lines_of
from minipeft.data.tokenizer import Tokenizer
from minipeft.errors import MinipeftError
from minipeft.files import parse_json

# Liu et al. 2019, section 2.2: of all tokens; and of these
MASKED, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1


def read_lines(paths: Sequence[str]) -> Iterator[str]:
    """Lines of text files, or the field "text" of each line of jsonl files; empty lines are left out."""
    for path in paths:
        for number, line in enumerate(lines_of(path), 1):
            text = line.strip()
            if path.endswith(".jsonl"):
                try:
                    text = parse_json(line)["text"].strip()
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise MinipeftError(f'{path}, line {number}: no JSON object with a "text"') from None
            if text:
                yield text


def tokenize_lines(lines: Iterator[str], tokenizer: Tokenizer) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    tokenizer.tokenizer.no_truncation()
    parts, lengths = [], [0]
    while chunk := [line for _, line in zip(range(10_000), lines, strict=False)]:
        for encoding in tokenizer.tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            parts.append(np.array(encoding.ids, dtype=np.int32))
            lengths.append(len(encoding.ids))
    return np.concatenate([np.zeros(0, np.int32), *parts]), np.cumsum(np.array(lengths, dtype=np.int64))


@dataclass(frozen=True)
class TokenizedText:
    """Lines of text as one array of token ids; line i is tokens offsets[i] to offsets[i + 1]; no special tokens."""

    tokens: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    start_id: int
    end_id: int

    def blocks(self, length: int) -> list[tuple[int, int]]:
        """Lines side by side in blocks of `length` tokens, <s> and </s> counted → (first token, last + 1) of each.

        A line that does not fit starts the next block, unless this one is less than three quarters full: it is cut.
        """
        room = length - 2
        blocks: list[tuple[int, int]] = []
        start = end = 0
        for line_end in self.offsets[1:].tolist():
            while line_end - start > room:
                if end - start < 0.75 * room:
                    end = start + room
                blocks.append((start, end))
                start = end
            end = line_end
        if end > start:
            blocks.append((start, end))
        return blocks

    def block(self, start: int, end: int) -> list[int]:
        return [self.start_id, *self.tokens[start:end].tolist(), self.end_id]


def mask(batch: PackedBatch, tokenizer: Tokenizer) -> tuple[PackedBatch, Tensor, Tensor]:
    """Mask a batch with torch's random numbers → (the batch, indices of the masked tokens, their true ids)."""
    special = torch.tensor(sorted(tokenizer.special_token_ids))
    chance = torch.rand(batch.total_tokens)
    masked = ((chance < MASKED) & ~torch.isin(batch.input_ids, special)).nonzero().flatten()
    if not len(masked):  # a few tokens may all be spared, and without a target there is no loss
        masked = (~torch.isin(batch.input_ids, special)).nonzero().flatten()[:1]
    targets = batch.input_ids[masked]
    chance = torch.rand(len(masked))
    replacement = torch.where(chance < REPLACED_BY_MASK, tokenizer.mask_token_id, targets)
    at_random = (chance >= REPLACED_BY_MASK) & (chance < REPLACED_BY_MASK + REPLACED_AT_RANDOM)
    replacement = torch.where(at_random, torch.randint(tokenizer.vocab_size, targets.shape), replacement)
    input_ids = batch.input_ids.index_copy(0, masked, replacement)
    return replace(batch, input_ids=input_ids), masked, targets
