"""Temperature scaling: probabilities that say how often predictions are right (Guo et al. 2017, section 4.2).

probabilities = softmax(logits / T), or sigmoid(logits / T) with a T for each label of multi-label data. T > 1 makes a
model less confident; predictions of classes stay the same.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 100.0  # of a temperature and its inverse: without a limit, separable logits have none


def fit_temperatures(logits: Tensor, loss: Callable[[Tensor], Tensor], count: int) -> tuple[float, ...]:
    """Return the temperatures of logits with the smallest loss.

    Args:
        logits: (num_examples, num_labels).
        loss: Logits divided by a temperature → their mean loss.
        count: The number of temperatures: 1, or one for each label.
    """
    log_temperatures = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperatures], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits.double() / log_temperatures.exp())
        value.backward()
        return value

    optimizer.step(closure)
    found = log_temperatures.detach().exp().clamp(1 / LARGEST, LARGEST)
    return tuple(found.nan_to_num(1.0).tolist())
