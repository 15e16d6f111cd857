"""Exercises of page 3. Replace each `...` by your answer, then run `python walkthroughs/check.py 3`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered

import minipeft

TRUE = {"a38454d2", "ead06602"}  # hashes of the true statements of `explain`


def compute() -> int:
    """At which rank does LoRA on a square layer of 768 features have as many parameters as the layer's weight?"""
    return ...


def change(layer: torch.nn.Module) -> str:
    """Start with $A = 0$ and a random $B$: set `layer.lora_A` and `layer.lora_B` so. Does training still start from the
    pretrained function? Return the name of the one that has a gradient in the first step, "A" or "B".
    """
    return ...


def explain() -> str:
    """An adapter was trained with alpha 16 and rank 8, and a program loads it with alpha 32. What does the model
    compute? Return the letters of the true statements.

    - a: Nothing: the shapes do not fit, and an error is raised.
    - b: The change of every adapted weight is twice the trained one.
    - c: The same as before, because alpha matters in training only.
    - d: Alpha is a part of an adapter, which is why `adapter_config.json` stores it.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        rank = answer()
        if unanswered(rank):
            return "A has r rows of 768 numbers. How many has B?"
        return hint_unless(
            rank * (768 + 768) == 768**2, "LoRA trains two matrices, A and B; the weight has 768 times 768 numbers."
        )
    if answer.__name__ == "change":
        model = minipeft.load_pretrained("roberta-mini").eval()
        batch = minipeft.pack([[0, 100, 200, 2]], labels=[1], config=model.config)
        with torch.no_grad():
            pretrained = model(batch)
        layer: Any = minipeft.apply(model, minipeft.LoRA(rank=4)).encoder.layers[-1].value
        moves = answer(layer)
        if unanswered(moves):
            return "torch.nn.init.zeros_ and torch.nn.init.normal_ change a parameter in place."
        if not torch.allclose(model(batch), pretrained, atol=1e-6):
            return "The model does not start from the pretrained function: the product BA has to be 0."
        if layer.lora_A.any() or not layer.lora_B.any():
            return "A has to be 0, and B random."
        torch.nn.functional.cross_entropy(model(batch), batch.labels).backward()
        gradients = {name: float(getattr(layer, f"lora_{name}").grad.norm()) for name in "AB"}
        return hint_unless(
            moves == max(gradients, key=gradients.__getitem__),
            "The gradient of A has the factor B, and the gradient of B has the factor A.",
        )
    return hint_on_statements(3, answer(), TRUE, "The layer adds (alpha / r) B A x. Which of these has changed?")
