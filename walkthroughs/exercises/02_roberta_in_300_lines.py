"""Exercises of page 2. Replace each `...` by your answer, then run `python walkthroughs/check.py 2`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered

import minipeft

TRUE = {"5c2f070b", "603e81ab"}  # hashes of the true statements of `explain`


def compute() -> int:
    """How many parameters does one layer of roberta-base have? ($h = 768$, the feed-forward part is $4h$ wide.)"""
    return ...


def change(q: torch.Tensor, k: torch.Tensor) -> tuple[float, float]:
    """Leave out the division by $\\sqrt d$ in a head of attention. Are its weights spread over more tokens or over
    fewer? Return the entropy $-\\sum_j w_j \\log w_j$, the mean over the rows, with the division and without it.

    Args:
        q: (tokens, d), the queries of a head.
        k: (tokens, d), its keys.
    """
    return ...


def explain() -> str:
    """A programmer forgets to restart `position_ids` in each sequence of a packed batch. Which sequences get other
    logits? Return the letters of the true statements.

    - a: The first sequence keeps its logits.
    - b: All sequences get other logits.
    - c: The second sequence gets the positions that follow those of the first one.
    - d: None does, because attention does not cross the edge of a sequence.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        with torch.device("meta"):
            layer = minipeft.SequenceClassifier(minipeft.EncoderConfig()).encoder.layers[0]
        found = answer()
        if unanswered(found):
            return "Count four square linear layers, the two of the feed-forward part, and two LayerNorms."
        size = sum(parameter.numel() for parameter in layer.parameters())
        weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim == 2)
        return hint_unless(
            found == size,
            "Every linear layer has a bias, and each LayerNorm a weight and a bias."
            if found == weights
            else "A linear layer from m to n features has mn + n parameters, a LayerNorm of h features has 2h.",
        )
    if answer.__name__ == "change":
        q, k = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = answer(q, k)
        if unanswered(found):
            return "torch.softmax(q @ k.T / d**0.5, dim=1) are the weights; d is q.shape[1]."
        entropies = [
            float(torch.distributions.Categorical(logits=q @ k.T / scale).entropy().mean()) for scale in (8.0, 1.0)
        ]
        if torch.allclose(torch.tensor(found), torch.tensor(entropies[::-1]), atol=1e-4):
            return "These are the two numbers in the other order: first with the division, then without it."
        return hint_unless(
            torch.allclose(torch.tensor(found), torch.tensor(entropies), atol=1e-4),
            "Sum over the tokens of a row (dim=1), then take the mean over the rows. A weight of 0 contributes 0.",
        )
    return hint_on_statements(2, answer(), TRUE, "Write the positions of two sequences with 3 tokens each.")
