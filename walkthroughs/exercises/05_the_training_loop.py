"""Exercises of page 5. Replace each `...` by your answer, then run `python walkthroughs/check.py 5`."""

import math
from collections.abc import Callable
from typing import Any

from exercises.answers import hint_on_statements, hint_unless, unanswered

from minipeft.training.optimization.schedule import LR_SCHEDULES, linear_schedule

TRUE = {"081b5f7c", "0fd17508", "bfa88891"}  # hashes of the true statements of `explain`


def compute() -> tuple[int, float]:
    """RTE has 2,490 training examples. Return how many optimizer steps 25 epochs of 16 x 4 sequences are, and the
    factor on the learning rate at step 500 with 100 warmup steps.
    """
    return ...


def change(step: int, warmup_steps: int, total_steps: int) -> float:
    """Write a cosine schedule with the arguments of `linear_schedule`: warmup as before, then half a cosine from 1 to
    0. Where is it above the linear one? The package has the same, `--lr-schedule cosine`.
    """
    return ...


def explain() -> str:
    """`--batch-size 8 --grad-accum 8` does not fit into memory. May you use `--batch-size 4 --grad-accum 16` without
    choosing another learning rate? Return the letters of the true statements.

    - a: Yes: the gradient of a step is the same sum over 64 sequences, divided by 64.
    - b: No: smaller batches need a smaller learning rate.
    - c: In minipeft it does not help, because the batches are formed by their number of tokens.
    - d: A smaller `--max-tokens` takes less memory, with the same learning rate.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        found = answer()
        if unanswered(found):
            return "The last step of an epoch may have fewer than 64 examples. `linear_schedule` computes the factor."
        steps = sum(len(range(0, 2490, 64)) for _ in range(25))
        if found[0] != steps:
            return "Every epoch ends with a step of its own, also where fewer than 64 examples are left."
        return hint_unless(
            math.isclose(found[1], linear_schedule(500, 100, steps), rel_tol=1e-2),
            "After the warmup the factor falls in a straight line from 1 at step 100 to 0 at the last step.",
        )
    if answer.__name__ == "change":
        if unanswered(answer(50, 100, 900)):
            return "During the warmup the factor is step / warmup_steps. Half a cosine is (1 + cos(x)) / 2."
        wrong = [
            step
            for step in range(901)
            if not math.isclose(answer(step, 100, 900), LR_SCHEDULES["cosine"](step, 100, 900), abs_tol=1e-9)
        ]
        if wrong:
            where = "in the warmup" if wrong[0] < 100 else "after the warmup"
            return f"It differs from the package's first at step {wrong[0]} of 900, {where}."
        return hint_unless(
            math.isclose(answer(3, 0, 20), LR_SCHEDULES["cosine"](3, 0, 20)), "It has to work without warmup, too."
        )
    return hint_on_statements(
        5,
        answer(),
        TRUE,
        "What does `split_by_tokens` look at, and what bounds the memory?",
    )
