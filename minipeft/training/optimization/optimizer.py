"""AdamW's parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups.

    Matrices decay; biases, LayerNorm's vectors and (IA)³'s scales, which start at 1, do not.

    lr_ratio is the group's learning rate over the run's: LoRA+ gives B a larger one (Hayou et al. 2024, section 4).
    """
    ratio = getattr(getattr(model, "method", None), "lr_ratio", 1.0)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and not name.endswith("ia3_l")
            key = decays, ratio if name.endswith("lora_B") else 1.0
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_ratio": lr_ratio}
        for (decays, lr_ratio), parameters in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1]))
    ]


class AdamW(torch.optim.AdamW):
    """torch's AdamW, without the import of torch._dynamo (a second), which only an optimizer in torch.compile needs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
            method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
            if method is not None and not hasattr(method, "__dynamo_disable"):
                setattr(method, "__dynamo_disable", method)  # not by a dot: Python would mangle it
        super().__init__(*arguments, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


def adamw(
    model: nn.Module, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters; the learning rate is set in every step."""
    groups = parameter_groups(model, weight_decay)
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_ratio"]
