"""Temperature scaling: probabilities that say how often predictions are right (Guo et al. 2017, section 4.2).

probabilities = softmax(logits / T), or sigmoid(logits / T) with a T for each label of multi-label data. T > 1 makes a
model less confident; predictions stay the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minipeft.problems.problem import Problem

TINY = 1e-12  # of a threshold
LARGEST = 100.0  # of a temperature and its inverse: without a limit, separable logits have none


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
