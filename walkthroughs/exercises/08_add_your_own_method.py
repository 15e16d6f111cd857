"""Exercises of page 8. Replace each `...` by your answer, then run `python walkthroughs/check.py 8`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered
from torch import nn

import minipeft

TRUE = {"4d7d1cdc", "a0ca4e0b"}  # hashes of the true statements of `explain`


class DiagonalLinear(nn.Linear):
    """The layer of the page, without merging: h = W x + b + d ⊙ x."""

    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.diagonal = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.diagonal * x


def compute() -> int:
    """How many parameters does the page's `Diagonal()` train in roberta-base?"""
    return ...


def change(layer: DiagonalLinear) -> bool:
    """Start $d$ at random numbers with standard deviation 0.02: set `layer.diagonal` so. Return whether the page's
    assertion still holds that the layer starts from the pretrained function.
    """
    return ...


def explain() -> str:
    """Why does `merged_weight` compute in float32, although the frozen weights may be bfloat16? Return the letters of
    the true statements.

    - a: A bfloat16 number has eight significant bits, so a small change can be lost completely.
    - b: float32 is faster than bfloat16.
    - c: In float32 the change is added exactly enough, and the sum is rounded once at the end.
    - d: bfloat16 cannot represent numbers as small as a change.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        config, found = minipeft.EncoderConfig(), answer()
        if unanswered(found):
            return "It has hidden_size numbers for each target in each layer, and two targets."
        return hint_unless(
            found == sum(config.hidden_size for _ in range(config.num_hidden_layers) for _ in ("query", "value")),
            "Multiply the targets, the layers and the hidden size of roberta-base.",
        )
    if answer.__name__ == "change":
        layer, x = DiagonalLinear(2000), torch.randn(3, 2000)
        found = answer(layer)
        if unanswered(found):
            return "nn.init.normal_ changes a parameter in place; it takes std=..."
        if not 0.018 < float(layer.diagonal.detach().std()) < 0.022:
            return f"The standard deviation is {float(layer.diagonal.detach().std()):.4f}."
        return hint_unless(
            found == torch.equal(layer(x), nn.Linear.forward(layer, x)), "Compare layer(x) with W x + b for some x."
        )
    return hint_on_statements(8, answer(), TRUE, "Add 0.003 to 1 in bfloat16. Then look at 0.003 itself in bfloat16.")
