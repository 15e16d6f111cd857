"""Solutions of page 4."""

import minipeft


def compute() -> int:
    """$11 h$ in each layer and $h$ for the embeddings: $11 \\cdot 1024 \\cdot 24 + 1024 = 271{,}360$."""
    return 11 * 1024 * 24 + 1024


def change(model: minipeft.SequenceClassifier) -> int:
    """`count_parameters` counts what has `requires_grad`. The key biases are $h$ numbers in each layer."""
    for layer in model.encoder.layers:
        layer.key.bias.requires_grad_(False)
    return minipeft.count_parameters(model).method


def explain() -> str:
    """The weights of attention sum to 1 (a), so a value bias $b_v$ adds $b_v$ to the result of attention for every
    token. `output` then makes $W_o b_v + b_o$ of both biases, and its own bias can be that vector already (c). Its
    gradient is not zero (b), and a query bias changes the weights of attention, differently for every key (d).
    """
    return "ac"
