"""Exercises of page 1. Replace each `...` by your answer, then run `python walkthroughs/check.py 1`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered
from torch.nn.utils.rnn import pad_sequence

import minipeft

TRUE = {"85136d3a", "9b3eb557"}  # hashes of the true statements of `explain`


def compute() -> tuple[int, int, float]:
    """A batch has sequences of 10, 20, 30 and 100 tokens. Return the slots of the padded batch, the slots of the
    packed batch, and their ratio.
    """
    return ...


def change(batch: minipeft.PackedBatch) -> list[list[int]]:
    """Write the reverse of `minipeft.pack`: return the token ids of each sequence, as a list of lists."""
    return ...


def explain() -> str:
    """`split_by_tokens` sorts the sequences of one optimizer step by length. Why does this change nothing, although
    sorting the whole training set by length would? Return the letters of the true statements.

    - a: The gradient of a step is a sum over its sequences, and a sum does not depend on the order of its terms.
    - b: Without sorting, the packed batch would have padding.
    - c: Sorting the training set changes which sequences share a step, so steps are no longer random samples.
    - d: Sorting within a step changes the loss of each sequence a little, and these changes cancel.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        four = [torch.full((length,), 5) for length in (10, 20, 30, 100)]
        padded, packed = (
            pad_sequence(four).numel(),
            minipeft.pack([ids.tolist() for ids in four], config=minipeft.EncoderConfig()),
        )
        found = answer()
        if unanswered(found):
            return "A padded batch is as wide as its longest sequence."
        return hint_unless(
            tuple(found[:2]) == (padded, packed.total_tokens) and abs(found[2] - padded / packed.total_tokens) < 1e-6,
            "Return three numbers: sequences times the longest length, the sum of the lengths, and the first divided "
            "by the second.",
        )
    if answer.__name__ == "change":
        sequences = [[0, 7, 2], [0, 9, 9, 9, 8, 2], [0, 2], [0, 4, 5, 6, 2]]
        found = answer(minipeft.pack(sequences, config=minipeft.EncoderConfig()))
        if unanswered(found):
            return "`batch.input_ids` holds all tokens end to end; `batch.lengths` says how many each sequence has."
        return hint_unless(
            [list(ids) for ids in found] == sequences, "Cut `input_ids` where `lengths` or `cu_seqlens` say so."
        )
    return hint_on_statements(1, answer(), TRUE, "Compare what a sum depends on with what is drawn at random.")
