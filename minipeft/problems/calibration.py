"""Temperatures and thresholds of probabilities, chosen on validation logits after training.

Temperature scaling makes probabilities say how often predictions are right (Guo et al. 2017, section 4.2):
probabilities = softmax(logits / T), or sigmoid(logits / T) with a T for each label of multi-label data. T > 1 makes a
model less confident; predictions stay the same.

There is a threshold for each label, or one for two classes: the second one is predicted where its probability reaches
the threshold. Left out: thresholds for more than two classes, which depend on one another.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.problems.class_metrics import f1_of_counts
from minipeft.problems.metrics import Array
from minipeft.problems.numeric_metrics import counts_by_threshold
from minipeft.problems.problem import Problem

TINY = 1e-12  # of a threshold
LARGEST = 100.0  # of a temperature and its inverse: without a limit, separable logits have none
DEFAULT = 0.5  # threshold of the probability of a label
MOST_CANDIDATES = 500  # of more probabilities of a class, those at equal numbers of examples are compared
MOST_PASSES = 20


def calibrate(problem: Problem, logits: Tensor, targets: Sequence[Any], count: int) -> Problem:
    """Return the problem with the temperatures for which the loss of validation logits is the smallest.

    Args:
        problem: What a label is.
        logits: (num_examples, num_labels).
        targets: As `Problem.read` returns them.
        count: The number of temperatures: 1, or one for each label.
    """
    expected = problem.targets(problem.as_packed(targets), (), logits.shape[1])
    expected = expected.double() if expected.is_floating_point() else expected
    log_temperatures = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperatures], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.losses(logits.double() / log_temperatures.exp(), expected).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = log_temperatures.detach().exp().clamp(1 / LARGEST, LARGEST).nan_to_num(1.0)
    if problem.thresholds:  # of the same logits as before, so that predictions stay the same
        before = torch.tensor(problem.temperatures or 1.0, dtype=torch.float64)
        boundary = torch.tensor(problem.thresholds, dtype=torch.float64).logit() * before  # a difference of logits
        problem = replace(problem, thresholds=tuple((boundary / found).sigmoid().clamp(TINY, 1 - TINY).tolist()))
    return replace(problem, temperatures=tuple(found.tolist()))


def thresholds_for_macro_f1(scores: Array, actual: Array) -> list[float]:
    """Return the threshold of each label at which its F1 is the highest; 0.5 where no example has the label.

    Args:
        scores: (num_examples, num_labels), probabilities.
        actual: (num_examples, num_labels), bool, which examples have which labels.
    """
    columns = zip(scores.T, actual.T, strict=True)
    return [_best(*_choices(*column), column[1].sum())[0] if column[1].any() else DEFAULT for column in columns]


def thresholds_for_micro_f1(scores: Array, actual: Array) -> list[float]:
    """Return a threshold for each label, so that the F1 of all decisions together is high.

    It starts at the best threshold that all labels share, and changes that of one label after the other to the best
    one while the F1 grows, so that it never ends lower. The arguments are those of `thresholds_for_macro_f1`.
    """
    total = actual.sum()
    shared, _ = _best(*_choices(scores.ravel(), actual.ravel()), total)
    found, decisions = [shared] * scores.shape[1], scores >= shared
    true, predicted = (decisions & actual).sum(0), decisions.sum(0)
    for _ in range(MOST_PASSES):
        prev = list(found)
        for n in np.flatnonzero(actual.any(0)):
            choices = _choices(scores[:, n], actual[:, n])
            rest = true.sum() - true[n], predicted.sum() - predicted[n]
            found[n], best = _best(choices[0], choices[1] + rest[0], choices[2] + rest[1], total)
            true[n], predicted[n] = choices[1][best], choices[2][best]
        if found == prev:
            break
    return found


def _best(thresholds: Array, true: Array, predicted: Array, actual: int) -> tuple[float, int]:
    """Return the threshold with the highest F1, and its place."""
    place = int(np.argmax(f1_of_counts(true, predicted, np.full(len(true), actual))))
    return float(thresholds[place]), place


def _choices(scores: Array, actual: Array) -> tuple[Array, Array, Array]:
    """Return the thresholds halfway between two neighbouring scores, and what is true and predicted from each on."""
    distinct, true, predicted = counts_by_threshold(scores, actual)
    return (distinct + np.append(distinct[1:], 0.0)) / 2, true, predicted


def candidates(scores: Array) -> list[float]:
    """Return the thresholds that are halfway between two neighbouring scores, and 0.5; the nearest to 0.5 is first."""
    distinct = np.unique(scores)
    places = np.linspace(0, len(distinct) - 1, min(len(distinct), MOST_CANDIDATES)).astype(np.int64)[1:]
    between = (distinct[places] + distinct[places - 1]) / 2
    return sorted([DEFAULT, *between.tolist()], key=lambda threshold: abs(threshold - DEFAULT))
