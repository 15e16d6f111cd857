"""Exercises of page 6. Replace each `...` by your answer, then run `python walkthroughs/check.py 6`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered
from torch.utils.flop_counter import FlopCounterMode

import minipeft

TRUE = {"4f47845f", "a1901adc"}  # hashes of the true statements of `explain`


def compute() -> int:
    """How many operations does roberta-base's `intermediate` layer (768 to 3,072 features) take for 512 tokens?"""
    return ...


def change(model: minipeft.SequenceClassifier) -> minipeft.SequenceClassifier:
    """Put LoRA of rank 8 on all six linear layers of `model`, and return it. How many forward passes does a training
    step cost now? The check prints it.
    """
    return ...


def explain() -> str:
    """BitFit trains fewer parameters than LoRA, and takes more operations. Why? Return the letters of the true
    statements.

    - a: BitFit trains a bias below the first layer, so the gradient passes through every frozen layer.
    - b: The gradient of a bias takes a matrix product.
    - c: With LoRA, the first layer's frozen products need no gradient of their input.
    - d: A method with fewer trainable parameters always takes fewer operations.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        x, weight = torch.empty(512, 768, device="meta"), torch.empty(768, 3072, device="meta")
        found = answer()
        if unanswered(found):
            return "An (m, k) matrix times a (k, n) matrix takes 2mkn operations."
        return hint_unless(
            found == operations(lambda: x @ weight), "Each of the m n results takes k multiplications and k additions."
        )
    if answer.__name__ == "change":
        model = minipeft.load_pretrained("roberta-mini").eval()
        batch = minipeft.pack([list(range(5, 69))] * 8, labels=[0, 1] * 4, config=model.config)
        forward = operations(lambda: model(batch))
        adapted = answer(model)
        if unanswered(adapted):
            return "Return what `minipeft.apply` returns. `minipeft.LoRA` takes targets=(...)."
        targets = set(adapted.method.targets)
        if adapted.method.rank != 8 or len(targets) != 6:
            return f"Rank 8 and six targets are wanted; the method is {adapted.method}."
        step = operations(lambda: torch.nn.functional.cross_entropy(adapted(batch), batch.labels).backward())
        print(f"A training step takes {step / forward:.2f} forward passes.")
        return ""
    return hint_on_statements(
        6, answer(), TRUE, "Follow the gradient downwards: where does each method stop needing it?"
    )


def operations(compute: Callable[[], Any]) -> int:
    """Return the operations of the matrix products of a computation."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()
