"""What trains: one file a method, and this registry of them.

A method is a frozen dataclass, which prints as its constructor, and one function that installs it in a frozen model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from minipeft.errors import MinipeftError
from minipeft.methods import bitfit, full, head, lora
from minipeft.model.roberta import SequenceClassifier

# name → (config, the function that installs it)
METHODS: dict[str, tuple[type[Any], Callable[[SequenceClassifier, Any], None]]] = {
    "full": (full.Full, full.install),
    "head": (head.Head, head.install),
    "bitfit": (bitfit.BitFit, bitfit.install),
    "lora": (lora.LoRA, lora.install),
}


@dataclass(frozen=True)
class ParameterCount:
    """Trainable in the method, trainable in the head, and all parameters of the model."""

    method: int
    head: int
    total: int


def get_method(name: str) -> type[Any]:
    """A method's config class; an unknown name raises with the valid ones."""
    if name not in METHODS:
        raise MinipeftError(f"unknown method {name!r}; one of {', '.join(METHODS)}")
    return METHODS[name][0]


def method_name(method: Any) -> str:
    """The registry's name of a method's config."""
    for name, (config, _) in METHODS.items():
        if type(method) is config:
            return name
    raise MinipeftError(
        f"{method!r} is no method; make one of {', '.join(config.__name__ for config, _ in METHODS.values())}"
    )


def apply(model: SequenceClassifier, method: Any) -> SequenceClassifier:
    """Freeze `model`, install `method`, and return the same model, ready to train.

    What trains (the method's parameters and the head) is float32 from here on, whatever the frozen weights are.
    Raises MinipeftError for a model that already has a method.
    """
    install = METHODS[method_name(method)][1]
    if model.method is not None:
        raise MinipeftError(f"the model already has {model.method!r}; load the checkpoint anew to apply {method!r}")
    model.requires_grad_(False)
    install(model, method)
    model.head.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    model.method = method
    return model


def count_parameters(model: SequenceClassifier) -> ParameterCount:
    """Count what trains in the method and in the head, and all parameters."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    in_head = sum(parameter.numel() for parameter in model.head.parameters() if parameter.requires_grad)
    return ParameterCount(trained - in_head, in_head, sum(parameter.numel() for parameter in model.parameters()))
