"""The methods: one file each, and this registry.

A method is a frozen dataclass, which prints as its constructor, and one function that installs it in a frozen model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minipeft.errors import MinipeftError, check_choice
from minipeft.methods import (
    adalora,
    bitfit,
    bottleneck,
    dora,
    full,
    head,
    ia3,
    layer_norm,
    lora,
    prefix_tuning,
    prompt_tuning,
    vera,
)
from minipeft.methods.adapted import targets_of
from minipeft.methods.peft_format import PeftFormat
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families import family_of


class Row(NamedTuple):
    """A method in the registry.

    Attributes:
        config: Its settings, a frozen dataclass.
        install: Puts it into a frozen model.
        peft: How peft stores it; None for a method that peft lacks.
        merges: Whether it can be merged into the encoder's weights.
        penalty: model → what is added to the task's loss, a scalar, once per step.
        after_step: (model, step, total_steps): what it does after optimizer step number `step`, gradients still there.
    """

    config: type[Any]
    install: Callable[[SequenceClassifier, Any], None]
    peft: PeftFormat | None = None
    merges: bool = True
    penalty: Callable[[SequenceClassifier], Tensor] | None = None
    after_step: Callable[[SequenceClassifier, int, int], None] | None = None


METHODS: dict[str, Row] = {
    "full": Row(full.Full, full.install),
    "head": Row(head.Head, head.install),
    "bitfit": Row(bitfit.BitFit, bitfit.install),
    "layernorm": Row(layer_norm.LayerNormTuning, layer_norm.install, layer_norm.PEFT),
    "lora": Row(lora.LoRA, lora.install, lora.PEFT),
    "dora": Row(dora.DoRA, dora.install, dora.PEFT),
    "adalora": Row(
        adalora.AdaLoRA, adalora.install, adalora.PEFT, penalty=adalora.penalty, after_step=adalora.after_step
    ),
    "vera": Row(vera.VeRA, vera.install, vera.PEFT),
    "ia3": Row(ia3.IA3, ia3.install, ia3.PEFT),
    "houlsby": Row(bottleneck.Houlsby, bottleneck.install_houlsby, merges=False),
    "pfeiffer": Row(bottleneck.Pfeiffer, bottleneck.install_pfeiffer, merges=False),
    "prefix_tuning": Row(prefix_tuning.PrefixTuning, prefix_tuning.install, prefix_tuning.PEFT, merges=False),
    "prompt_tuning": Row(prompt_tuning.PromptTuning, prompt_tuning.install, prompt_tuning.PEFT, merges=False),
}


@dataclass(frozen=True)
class ParameterCount:
    """Trainable in the method, trainable in the head, and all parameters of the model."""

    method: int
    head: int
    total: int


def get_method(name: str) -> type[Any]:
    """A method's config class; an unknown name raises with the valid ones."""
    check_choice("method", name, METHODS)
    return METHODS[name].config


def method_name(method: Any) -> str:
    """The registry's name of a method's config."""
    for name, row in METHODS.items():
        if type(method) is row.config:
            return name
    raise MinipeftError(
        f"{method!r} is not a method; make one of {', '.join(row.config.__name__ for row in METHODS.values())}"
    )


def changed_options(method: Any) -> dict[str, Any]:
    """The settings of a method's config that are not its defaults."""
    default = type(method)()
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def apply(model: SequenceClassifier, method: Any) -> SequenceClassifier:
    """Freeze `model`, install `method`, and return the same model, ready to train.

    Args:
        method: The config of one: LoRA(rank=2), BitFit(), …

    Trainable parameters (the method's and the head's) are float32 from here on, whatever the frozen weights are.

    Raises:
        MinipeftError: for a model that already has a method, an object that is not a method, and settings that do
            not fit the model.
    """
    name = method_name(method)
    if model.method is not None:
        raise MinipeftError(f"the model already has {model.method!r}; load the checkpoint again to apply {method!r}")
    if reason := family_of(model.config).unsupported.get(name):
        raise MinipeftError(f"{name} does not work with model_type {model.config.model_type}: {reason}")
    if (targets := getattr(method, "targets", None)) and (known := targets_of(model, targets)) != targets:
        method = replace(method, targets=known)
    model.requires_grad_(False)
    METHODS[name].install(model, method)
    model.train(model.training)  # new layers are in training; a model in evaluation mode stays without dropout
    model.head.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    model.method = method
    return model


def count_parameters(model: SequenceClassifier) -> ParameterCount:
    """Count the trainable parameters of the method and the head, and all parameters of the model.

    The numbers of a tensor count one each, whatever their dtype.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    in_head = sum(parameter.numel() for parameter in model.head.parameters() if parameter.requires_grad)
    return ParameterCount(trained - in_head, in_head, sum(parameter.numel() for parameter in model.parameters()))
