"""Exercises of page 7. Replace each `...` by your answer, then run `python walkthroughs/check.py 7`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from exercises.answers import hint_on_statements, hint_unless, unanswered

TRUE = {"2080b951", "de2f22e3"}  # hashes of the true statements of `explain`


def compute() -> tuple[float, int]:
    """Return one standard error of an accuracy of 0.9 on 408 rows, and how many rows give one of 0.005."""
    return ...


def change(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Drop the first condition of the rule: call two methods significantly different if their medians of three seeds
    differ by more than one standard error. How often is that said of equal methods? The check prints it.

    Args:
        one: (comparisons, 3), the figures of a method with three seeds, in standard errors.
        other: (comparisons, 3), those of the other method.

    Returns:
        (comparisons,), bool: whether the two are called significantly different.
    """
    return ...


def explain() -> str:
    """A paper tries 12 learning rates for its method and 3 for the baseline, and reports the best of each on the
    validation rows. What is wrong? Return the letters of the true statements.

    - a: Nothing: both report their best figure.
    - b: The best of 12 noisy figures is larger than the best of 3, even if all rates are equally good.
    - c: Equal grids, or rows that were not used for the choice, make it fair.
    - d: The method's figure is unbiased, because its rates were tried on validation rows.
    """
    return ...


def check(answer: Callable[..., Any]) -> str:
    """Return a hint, or nothing where the answer is right."""
    if answer.__name__ == "compute":
        found = answer()
        if unanswered(found):
            return "The standard error of a proportion p of n rows is the root of p (1 - p) / n."
        if not math.isclose(408 * found[0] ** 2, 0.9 * (1 - 0.9), rel_tol=0.02):
            return "Take the root of p (1 - p) / n, not p (1 - p) / n itself."
        return hint_unless(math.isclose(found[1] * 0.005**2, 0.9 * 0.1, rel_tol=1e-3), "Solve the formula for n.")
    if answer.__name__ == "change":
        one, other = np.random.default_rng(0).standard_normal((2, 20_000, 3))
        found = answer(one, other)
        if unanswered(found):
            return "np.median(one, axis=1) has one median for each comparison."
        gaps = np.abs(np.sort(one, axis=1)[:, 1] - np.sort(other, axis=1)[:, 1])
        if np.shape(found) != (20_000,) or not np.array_equal(found, gaps > 1):
            return "Return one bool for each comparison. The medians may differ in both directions."
        print(f"By the medians alone, {np.mean(found):.3f} of the equal methods are called different.")
        return ""
    return hint_on_statements(
        7,
        answer(),
        TRUE,
        "Draw 12 random numbers and 3 random numbers many times, and compare the two maxima.",
    )
