"""Exercises of page 4. Replace each `...` by your answer, then run `python walkthroughs/check.py 4`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered

import minipeft

TRUE = {"66bcbf19", "892d45a8"}  # hashes of the true statements of `explain`


def compute() -> int:
    """How many biases does BitFit train in roberta-large ($h = 1024$, 24 layers)?"""
    return ...


def change(model: minipeft.SequenceClassifier) -> int:
    """BitFit is installed in `model`. Freeze the key biases, and return how many biases are still trained."""
    return ...


def explain() -> str:
    """Training the biases of both `value` and `output` does not give the model more functions than training that of
    `output` alone. Why? Return the letters of the true statements.

    - a: The weights of attention sum to 1.
    - b: The gradient of a value bias is zero.
    - c: A value bias adds the same vector for every token, and the bias of `output` can be that vector already.
    - d: The same holds for the query bias.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        large = minipeft.EncoderConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        )
        with torch.device("meta"):
            model = minipeft.apply(minipeft.SequenceClassifier(large), minipeft.BitFit())
        found = answer()
        if unanswered(found):
            return "A layer has 11 h biases. Which bias lies below the first layer?"
        return hint_unless(
            found == minipeft.count_parameters(model).method,
            "Count 11 h in each layer, and the bias of the LayerNorm of the embeddings.",
        )
    if answer.__name__ == "change":
        model = minipeft.apply(minipeft.load_pretrained("roberta-mini"), minipeft.BitFit())
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        found = answer(model)
        if unanswered(found):
            return "`requires_grad_(False)` freezes a parameter; `minipeft.count_parameters` counts the others."
        frozen = names - {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if {name for name in names if name.endswith("key.bias")} != frozen:
            return "Exactly the biases of `key` have to be frozen, one in each of `model.encoder.layers`."
        return hint_unless(
            found == minipeft.count_parameters(model).method,
            "`minipeft.count_parameters(model).method` does not count the head.",
        )
    return hint_on_statements(
        4,
        answer(),
        TRUE,
        "Write the result of attention for values v + b, and then what `output` makes of it.",
    )
