"""Solutions of page 3."""

import torch


def compute() -> int:
    """$r (768 + 768) = 768^2$ gives $r = 384$, half of the width."""
    return 768**2 // (768 + 768)


def change(layer: torch.nn.Module) -> str:
    """Training starts from the pretrained function: $BA$ is 0 in both cases. Now the gradient of $B$ is 0, because it
    has the factor $A$, and $A$ moves first.
    """
    torch.nn.init.zeros_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    return "A"


def explain() -> str:
    """The scale $s = \\alpha / r$ is 4 instead of 2, so that the change of every adapted weight is twice the trained
    one (b). The shapes fit and no error is raised: alpha is part of an adapter, which is why it is stored (d).
    """
    return "bd"
