"""Solutions of page 7."""

import math

import numpy as np


def compute() -> tuple[float, int]:
    """$\\sqrt{0.9 \\cdot 0.1 / 408} = 0.0149$, and $n = 0.09 / 0.005^2 = 3600$."""
    return math.sqrt(0.9 * 0.1 / 408), round(0.9 * 0.1 / 0.005**2)


def change(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """It is said several times as often as with both conditions."""
    difference: np.ndarray = np.abs(np.median(one, axis=1) - np.median(other, axis=1)) > 1
    return difference


def explain() -> str:
    """The best of 12 noisy figures is larger than the best of 3, even if all learning rates are equally good (b): the
    expected best of 12 standard normal numbers is 1.63, of 3 it is 0.85. The method gets more of this than the baseline
    does. Equal grids, or a figure on rows that were not used for the choice, make the comparison fair (c).
    """
    return "bc"
