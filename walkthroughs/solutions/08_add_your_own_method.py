"""Solutions of page 8."""

from torch import nn


def compute() -> int:
    """Query and value in 12 layers with 768 numbers each: $2 \\cdot 12 \\cdot 768 = 18{,}432$."""
    return 2 * 12 * 768


def change(layer: nn.Module) -> bool:
    """The first assertion of the page's first test fails: the layer does not start from the pretrained function."""
    nn.init.normal_(layer.diagonal, std=0.02)
    return False


def explain() -> str:
    """A bfloat16 number has eight significant bits: 1 + 0.003 is 1 in bfloat16 (a). In float32 the change is added
    exactly enough, and rounded once at the end (c). bfloat16 has float32's range of exponents: it represents 0.003
    itself well (d).
    """
    return "ac"
