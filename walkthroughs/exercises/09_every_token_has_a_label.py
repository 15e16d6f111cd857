"""Exercises of page 9. Replace each `...` by your answer, then run `python walkthroughs/check.py 9`."""

from collections.abc import Callable
from typing import Any

import torch
from exercises.answers import hint_on_statements, hint_unless, unanswered

import minipeft
from minipeft.problems.token_labels import find_entities

TRUE = {"8bfb40ae", "ba58ce1c"}  # hashes of the true statements of `explain`


def compute() -> int:
    """How many parameters does the head of a `TokenClassifier` of roberta-base with 13 tags have?"""
    return ...


def change(tags: list[str]) -> list[tuple[int, int, str]]:
    """Write your own `find_entities`: return the first word, the word after the last, and the type of each entity. An
    `I-` of another type, or after `O`, begins an entity of its own. How many are in `B-person I-place`?
    """
    return ...


def explain() -> str:
    """Why must a batch of token classification compute every token in the last layer? Return the letters of the true
    statements.

    - a: Each token's logits come from its own hidden state after the last layer.
    - b: The loss of a token depends on the labels of all others.
    - c: A head that reads the first token alone needs only that one after the last layer.
    - d: The last layer's keys and values are needed for the first token only.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        base = minipeft.EncoderConfig().with_labels([f"tag {number}" for number in range(13)], "token_classification")
        with torch.device("meta"):
            model = minipeft.apply(minipeft.TokenClassifier(base), minipeft.Head())
        found = answer()
        if unanswered(found):
            return "The head is one linear layer, from the hidden state to the tags."
        return hint_unless(
            found == minipeft.count_parameters(model).head, "A linear layer has a weight and a bias; h is 768."
        )
    if answer.__name__ == "change":
        for tags in ("O B-person I-person O", "B-place B-place", "I-person O I-place I-place", "B-person I-place", "O"):
            found = answer(tags.split())
            if unanswered(found):
                return "Go through the tags, and remember where the present entity began and of which type it is."
            if [tuple(entity) for entity in found] != find_entities(tags.split()):
                return f"The entities of `{tags}` are others."
        return ""
    return hint_on_statements(9, answer(), TRUE, "What does the head read, and from which tokens?")
