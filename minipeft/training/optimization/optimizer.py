"""AdamW over the trainable parameters: which parameters decay, and the learning rate of each group.

    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
    w ← w − lr (m̂ / (√v̂ + ε) + λ w),   m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)

Left out, and why:

  - The update itself. It is torch's fused kernel: one pass over all parameters.
  - A learning-rate scheduler. The rate is a function of the step (schedule.py): there is no state to restore.
  - States of 8 bits. m and v exist for trainable parameters only: 5 MB for LoRA of rank 2 with the head on
    roberta-base, where full fine-tuning needs 1 GB.

Reference: Loshchilov and Hutter 2019, algorithm 2.
"""

from inspect import unwrap
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups that AdamW takes.

    Args:
        model: The model, with its method installed.
        weight_decay: λ, for matrices.

    Returns:
        One group for each weight decay and learning rate. "lr_ratio" is the group's learning rate over the run's.
    """
    # Only LoRA and DoRA have an lr_ratio; every other method trains at one rate.
    lora_plus_ratio = getattr(getattr(model, "method", None), "lr_ratio", 1.0)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Decay pulls towards 0. That limits a matrix, but would move biases, LayerNorm's weights and (IA)³'s
            # scales, which start at 1, away from the pretrained function.
            decays = parameter.ndim >= 2 and not name.endswith("ia3_l")
            # LoRA+ (Hayou et al. 2024, section 4): B starts at 0 and needs larger steps than A.
            lr_ratio = lora_plus_ratio if name.endswith("lora_B") else 1.0
            groups.setdefault((decays, lr_ratio), []).append(parameter)
    # A checkpoint holds the optimizer's states by position, so the groups have a fixed order: those that decay first.
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_ratio": lr_ratio}
        for (decays, lr_ratio), parameters in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1]))
    ]


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the decorators that import torch._dynamo, which takes more than a second.

    Only an optimizer inside torch.compile needs them, and a training step is not compiled as a whole.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def adamw(
    model: nn.Module, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; `set_learning_rate` comes before every step."""
    groups = parameter_groups(model, weight_decay)
    # torch has the fused kernel for these two devices. Elsewhere it updates one parameter after another.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    # lr is set before every step; 0 makes a forgotten call visible at once.
    return AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next step, in each group times its ratio."""
    for group in optimizer.param_groups:  # one, two or, with LoRA+, three
        group["lr"] = learning_rate * group["lr_ratio"]
