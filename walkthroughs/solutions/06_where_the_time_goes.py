"""Solutions of page 6."""

import minipeft


def compute() -> int:
    """$2mkn = 2 \\cdot 512 \\cdot 768 \\cdot 3072$, about 2.4 billion."""
    return 2 * 512 * 768 * 3072


def change(model: minipeft.SequenceClassifier) -> minipeft.SequenceClassifier:
    """A step costs a little more than with query and value alone: the additional products are thin."""
    targets = ("query", "key", "value", "output", "intermediate", "ffn_output")
    return minipeft.apply(model, minipeft.LoRA(rank=8, targets=targets))


def explain() -> str:
    """BitFit trains a bias in the embeddings, below the first layer. So the gradient has to pass through every frozen
    layer down to the bottom (a). With LoRA nothing below the first layer's query and value trains, and the first
    layer's products need no gradient of their input (c). The gradient of a bias is a sum (b).
    """
    return "ac"
