"""The methods: one file each, the base of their configs, and this registry.

A method is a frozen dataclass, which prints as its constructor, and one function that installs it in a frozen model.
To add one, write its file and add its row to METHODS. The file is imported when the method is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from minipeft.errors import MinipeftError, check_choice, nearest, short_repr
from minipeft.model.families import family_of

if TYPE_CHECKING:
    from torch import Tensor

    from minipeft.methods.peft_format import PeftFormat
    from minipeft.model.classifier import SequenceClassifier

PEFT_OPTIONS = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}  # → ours


class MethodConfig:
    """The base of the frozen dataclasses that are methods' configs.

    Raises:
        MinipeftError: for an option that the method does not have; the message names the one that was probably meant.
    """

    def __new__(cls, *values: Any, **options: Any) -> Any:
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in options:
            if name not in known:
                meant = nearest(PEFT_OPTIONS.get(name, name), known)
                its = ", ".join(known) or "none"
                raise MinipeftError(f"{cls.__name__} has no option {name!r}{meant}. Its options are: {its}.")
        return super().__new__(cls)

    def __init_subclass__(cls) -> None:
        cls.__repr__ = MethodConfig.__repr__  # type: ignore[method-assign]  # before @dataclass, which keeps it

    def __repr__(self) -> str:
        by_place = sorted(fields(self), key=lambda field: bool(field.kw_only))  # type: ignore[arg-type]
        values = {field.name: getattr(self, field.name) for field in by_place}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in values.items() if v is not None)})"


@dataclass(frozen=True)
class LayerMethodConfig(MethodConfig):
    """The base of the methods that can be restricted to the top layers.

    Args:
        train_layers: How many layers at the top get the method; None for all. Those below and the embeddings are then
            frozen and compute without dropout.
    """

    train_layers: int | None = field(default=None, kw_only=True)


def check_settings(method: Any, **checks: Callable[[str, Any], Any]) -> None:
    """Set the fields of a frozen config to what their checks, (name, value) → value, return."""
    for name, check in checks.items():
        object.__setattr__(method, name, check(name, getattr(method, name)))


@dataclass(frozen=True)
class MethodEntry:
    """A method in the registry: where it is defined, and what is known of it without importing that file.

    The file defines the config, `install(model, config)`, and, where the method has them, `penalty`, `after_step` and
    `PEFT`, a PeftFormat.

    Attributes:
        module: The module that defines the method.
        config_name: The name of its config class there.
        paper: The publication that the method is taken from; "" for none.
        peft_type: peft's name of the method; "" for a method that peft lacks.
        merges: Whether it can be merged into the encoder's weights.
    """

    module: str
    config_name: str
    paper: str = ""
    peft_type: str = ""
    merges: bool = True

    @property
    def config(self) -> type[Any]:
        """The class of the method's settings, a frozen dataclass."""
        return cast("type[Any]", self._defined(self.config_name))

    @property
    def penalty(self) -> Callable[[SequenceClassifier], Tensor] | None:
        """model → what is added to the task's loss, a scalar, once per step; None for nothing."""
        return cast("Callable[[SequenceClassifier], Tensor] | None", self._defined("penalty"))

    @property
    def after_step(self) -> Callable[[SequenceClassifier, int, int], None] | None:
        """(model, step, total_steps) → None, called after optimizer step `step` while the gradients are still there."""
        return cast("Callable[[SequenceClassifier, int, int], None] | None", self._defined("after_step"))

    @property
    def peft(self) -> PeftFormat | None:
        """How peft stores the method; None for a method that peft lacks."""
        return cast("PeftFormat | None", self._defined("PEFT") if self.peft_type else None)

    def install(self, model: SequenceClassifier, method: Any) -> None:
        """Put the method with the settings `method` into a frozen model."""
        self._defined("install")(model, method)

    def _defined(self, name: str) -> Any:
        return getattr(import_module(self.module), name, None)


def _entry(file: str, config_name: str, paper: str = "", peft_type: str = "", merges: bool = True) -> MethodEntry:
    return MethodEntry(f"{__name__}.{file}", config_name, paper, peft_type, merges)


METHODS: dict[str, MethodEntry] = {
    "lora": _entry("lora", "LoRA", "Hu et al. 2021, equation 3", "LORA"),
    "dora": _entry("lora_variants.dora", "DoRA", "Liu et al. 2024, equation 5", "LORA"),
    "adalora": _entry("lora_variants.adalora", "AdaLoRA", "Zhang et al. 2023, equation 3", "ADALORA"),
    "vera": _entry("lora_variants.vera", "VeRA", "Kopiczko et al. 2024, equation 2", "VERA"),
    "bitfit": _entry("bitfit", "BitFit", "Ben Zaken et al. 2022, section 3"),
    "layernorm": _entry("layer_norm", "LayerNormTuning", "Ba et al. 2016; Zhao et al. 2023", "LN_TUNING"),
    "ia3": _entry("ia3", "IA3", "Liu et al. 2022, section 3.3", "IA3"),
    "houlsby": _entry("bottleneck", "Houlsby", "Houlsby et al. 2019, section 2.1", merges=False),
    "pfeiffer": _entry("bottleneck", "Pfeiffer", "Pfeiffer et al. 2020, MAD-X, equation 1", merges=False),
    "prefix_tuning": _entry(
        "virtual_tokens", "PrefixTuning", "Li and Liang 2021, equation 3", "PREFIX_TUNING", merges=False
    ),
    "prompt_tuning": _entry(
        "virtual_tokens", "PromptTuning", "Lester et al. 2021, section 2", "PROMPT_TUNING", merges=False
    ),
    "head": _entry("head", "Head"),
    "full": _entry("full", "Full", "Devlin et al. 2019, section 3.2"),
}


@dataclass(frozen=True)
class ParameterCount:
    """Trainable in the method, trainable in the head, and all parameters of the model."""

    method: int
    head: int
    total: int


def get_method(name: str) -> type[Any]:
    """Return a method's config class; an unknown name raises MinipeftError with the valid ones."""
    check_choice("method", name, METHODS)
    return METHODS[name].config


def method_name(method: Any) -> str:
    """Return the registry's name of a method's config."""
    for name, entry in METHODS.items():
        if (type(method).__module__, type(method).__name__) == (entry.module, entry.config_name):
            return name
    names = ", ".join(entry.config_name for entry in METHODS.values())
    raise MinipeftError(f"{short_repr(method)} is not a method; make one of {names}")


def changed_options(method: Any) -> dict[str, Any]:
    """Return the settings of a method's config that are not its defaults."""
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
    from minipeft.methods.adapted import targets_of

    name = method_name(method)
    if model.method is not None:
        raise MinipeftError(f"the model already has {model.method!r}; load the checkpoint again to apply {method!r}")
    if reason := family_of(model.config).unsupported.get(name):
        raise MinipeftError(f"{name} does not work with model_type {model.config.model_type}: {reason}")
    if (targets := getattr(method, "targets", None)) and (known := targets_of(model, targets)) != targets:
        method = replace(method, targets=known)
    model.encoder.frozen_layers = _frozen_layers(model, name, method)
    model.requires_grad_(False)
    METHODS[name].install(model, method)
    trained = 0
    for path, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and model.encoder.may_train(path))
        trained += parameter.requires_grad
    if not trained and getattr(method, "train_layers", None) is not None:
        raise MinipeftError(f"{method!r} trains nothing in these layers. Leave out train_layers, or choose head.")
    model.train(model.training)  # new layers are in training; a model in evaluation mode stays without dropout
    model.head.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.method = method
    return model


def _frozen_layers(model: SequenceClassifier, name: str, method: Any) -> int | None:
    """Return how many of the lowest layers are frozen with the embeddings; None where a method may train everything."""
    layers, most = getattr(method, "train_layers", None), model.config.num_hidden_layers
    if layers is not None and not (isinstance(layers, int) and 1 <= layers <= most):
        raise MinipeftError(
            f"train_layers {short_repr(layers)} is not from 1 to {most}, the model's layers. Choose fewer."
        )
    if name == "head":
        return most
    return None if layers is None else most - layers


def count_parameters(model: SequenceClassifier) -> ParameterCount:
    """Count the trainable parameters of the method and the head, and all parameters of the model.

    The numbers of a tensor count one each, whatever their dtype.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    in_head = sum(parameter.numel() for parameter in model.head.parameters() if parameter.requires_grad)
    return ParameterCount(trained - in_head, in_head, sum(parameter.numel() for parameter in model.parameters()))
