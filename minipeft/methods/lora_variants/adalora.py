"""AdaLoRA (Zhang et al. 2023): updates in the form of a singular value decomposition, pruned to a shared budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.errors import MinipeftError, check_choice, check_float, check_int, check_probability
from minipeft.methods import LayerMethodConfig, check_settings
from minipeft.methods.adapted import (
    AdaptedLinear,
    SharedCasts,
    check_modules,
    check_rank,
    check_targets,
    target_modules_of,
    train_biases,
    train_modules,
)
from minipeft.methods.lora import BIASES, LoRALinear
from minipeft.methods.peft_format import PeftFormat, linear_modules, write_targets
from minipeft.methods.peft_format.reading import check_fields, read_targets, target_names
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import LINEAR_NAMES
from minipeft.model.layers import Linear


@dataclass(frozen=True)
class AdaLoRA(LayerMethodConfig):
    """h = W x + b + s · P Λ Q dropout(x), s = alpha / init_rank    (Zhang et al. 2023, equation 3)

    Training adds `penalty` to the loss, and after each step sets the least important singular values Λ of all layers
    to 0, so that `budget` of them are left (`after_step`).

    Args:
        target_rank: Singular values that are left at the end, as a mean over layers and targets.
        init_rank: Singular values of each layer and target at the start.
        alpha: The scaling's numerator.
        dropout: Probability on the input of Q, in training.
        targets: Linear layers, by name: query, key, value, output, intermediate, ffn_output.
        tinit: Optimizer steps before the budget starts to decrease.
        tfinal: Optimizer steps at the end with the budget at target_rank and the same values pruned.
        delta_t: Optimizer steps between two prunings, from tinit to tfinal.
        beta1, beta2: Decay of the averages of sensitivity and uncertainty (equations 9 and 10).
        orth_weight: Weight of the penalty that keeps P and Q orthogonal (equation 4).
        bias: Biases that are trained too: "none", "all" of the encoder, or "lora_only" for those of the targets.
        modules_to_save: Modules of the encoder that are trained entirely, by transformers' names.
        rank_pattern: Ranks of a pruned adapter that are below init_rank: {"11.query": 5}.

    An adapter that is saved before the last `tfinal` steps has more singular values than at the end.
    Parameters: init_rank · (in_features + out_features + 1) for each target in each layer; 1,991,520 for roberta-base.

    Raises:
        MinipeftError: for a target_rank above init_rank, a number out of its range, an unknown target or choice.
    """

    target_rank: int = 8
    init_rank: int = 12
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = LINEAR_NAMES
    tinit: int = 0
    tfinal: int = 0
    delta_t: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_weight: float = 0.5
    rank_pattern: dict[str, int] = field(default_factory=dict)
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("target_rank", 1), ("init_rank", 1), ("tinit", 0), ("tfinal", 0), ("delta_t", 1)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), least))
        if self.target_rank > self.init_rank:
            raise MinipeftError(f"target_rank {self.target_rank} is more than init_rank {self.init_rank}; lower it")
        check_settings(self, dropout=check_probability, targets=check_targets, modules_to_save=check_modules)
        for name in ("alpha", "beta1", "beta2", "orth_weight"):
            object.__setattr__(self, name, check_float(name, getattr(self, name), least=0))
        if self.alpha == 0:
            raise MinipeftError("alpha 0 would leave nothing to train; give a number above 0")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise MinipeftError(f"{name} {getattr(self, name)!r} is not between 0 and 1")
        check_choice("bias", self.bias, BIASES)
        if not isinstance(self.rank_pattern, dict):
            raise MinipeftError(f'rank_pattern {self.rank_pattern!r} is not a table; write it like {{"11.query": 5}}')
        for key, rank in self.rank_pattern.items():
            if check_int(f"rank_pattern[{key!r}]", rank, least=0) > self.init_rank:
                raise MinipeftError(f"rank_pattern[{key!r}] {rank} is more than init_rank {self.init_rank}")


MATRICES = ("lora_A", "lora_E", "lora_B")


class AdaLoRALinear(LoRALinear):
    """y = x Wᵀ + b + s · dropout(x) (Λ Q)ᵀ Pᵀ    (Zhang et al. 2023, equation 3)

    LoRA's layer with A = Λ Q and B = P. lora_A is Q (rank, in_features) and lora_B is P (out_features, rank), both of
    which start normal with standard deviation 0.02; lora_E is Λ's diagonal (rank, 1), which starts at 0. Each of the
    three has two averages of its own shape, which only training needs: sensitivity (Ī) and uncertainty (Ū).
    """

    def __init__(self, frozen: Linear, rank: int, scaling: float, dropout: float) -> None:
        AdaptedLinear.__init__(self, frozen)  # the rank of a pruned layer may be 0, and scaling is not alpha / rank
        self.scaling, self.dropout, self.shared_factors = scaling, dropout, None
        device = frozen.weight.device
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, self.in_features, device=device))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=device))
        self.lora_B = nn.Parameter(0.02 * torch.randn(self.out_features, rank, device=device))
        for name in MATRICES:
            for average in ("sensitivity", "uncertainty"):
                zeros = torch.zeros_like(self.get_parameter(name), requires_grad=False)
                self.register_buffer(f"{name}_{average}", zeros, persistent=False)

    @staticmethod
    def stack_a(layers: Sequence[AdaLoRALinear]) -> Tensor:  # type: ignore[override]
        """Λ Q of layers of one shape: (layers, rank, in_features)."""
        return _stack(layers, "lora_E") * _stack(layers, "lora_A")

    def merged_weight(self) -> Tensor:
        """W + s · P Λ Q."""
        return self.weight.float() + self.scaling * (self.lora_B @ (self.lora_E * self.lora_A))


def _stack(layers: Sequence[AdaLoRALinear], name: str) -> Tensor:
    """Stack a parameter or buffer of layers of one shape: (layers, …)."""
    return torch.stack([getattr(layer, name) for layer in layers])


def install(model: SequenceClassifier, method: AdaLoRA) -> None:
    modules = target_modules_of(model, method.targets)
    keys = [f"{module.layer}.{module.target}" for module in modules]
    if unknown := [key for key in method.rank_pattern if key not in keys]:
        raise MinipeftError(f"rank_pattern: {unknown[0]!r} fits no target. Write a key like {keys[-1]!r}")
    for module in modules:
        check_rank(method.init_rank, module)
    train_modules(model, method.modules_to_save, [module.path for module in modules])
    scaling = method.alpha / (method.init_rank + 1e-5)  # peft's, so that a file gives the same logits here and there
    for key, module in zip(keys, modules, strict=True):
        rank = method.rank_pattern.get(key, method.init_rank)
        model.encoder.set_submodule(module.path, AdaLoRALinear(module.linear, rank, scaling, method.dropout))
    model.encoder.low_rank = SharedCasts([part for part in model.modules() if isinstance(part, AdaLoRALinear)])
    train_biases(model, method.bias)


def penalty(model: SequenceClassifier) -> Tensor:
    """Return orth_weight · the mean over layers, and over P and Q, of ‖Pᵀ P − 1‖ and ‖Q Qᵀ − 1‖    (equation 4)

    The paper sums the squares of these norms; this is what peft does.
    """
    norms = []
    for layers in model.encoder.low_rank.groups:
        for q in (_stack(layers, "lora_A"), _stack(layers, "lora_B").mT):  # (layers, rank, in_ or out_features)
            product = q @ q.mT  # (layers, rank, rank)
            identity = torch.eye(product.shape[-1], device=product.device)
            norms.append(torch.linalg.vector_norm(product - identity, dim=(1, 2)))  # (layers,)
    assert isinstance(model.method, AdaLoRA)
    return model.method.orth_weight * torch.cat(norms).mean()


def budget(method: AdaLoRA, first: int, last: int, step: int, total_steps: int) -> int:
    """Return how many singular values are left after optimizer step `step`, from 0: from `first` down to `last`.

    last + (first − last) · (1 − (step − tinit) / (total_steps − tfinal − tinit))³ in between    (equation 12)
    """
    if step <= method.tinit:
        return first
    if step >= total_steps - max(method.tfinal, 1):  # the last step prunes whatever tfinal is
        return last
    left = 1 - (step - method.tinit) / (total_steps - method.tfinal - method.tinit)
    return int((first - last) * left**3 + last)


@torch.no_grad()
def after_step(model: SequenceClassifier, step: int, total_steps: int) -> None:
    """Update the importance of each singular value, and set the least important of all layers to 0.

    In the last `tfinal` steps the importance is not updated, so the same singular values are pruned in each.
    """
    method = model.method
    assert isinstance(method, AdaLoRA)
    if method.tinit + method.tfinal >= total_steps:
        raise MinipeftError(
            f"tinit {method.tinit} and tfinal {method.tfinal} leave none of the run's {total_steps} steps to prune in; "
            "lower them or train longer"
        )
    groups: list[list[AdaLoRALinear]] = model.encoder.low_rank.groups  # of layers of one shape
    layers = [layer for group in groups for layer in group]
    if step < total_steps - method.tfinal:
        update_importance(layers, method.beta1, method.beta2)
    first = sum(len(layer.lora_E) for layer in layers)
    last = method.target_rank * len(layers)
    pruned = first - budget(method, first, last, step, total_steps)
    if pruned > 0 and (step % method.delta_t == 0 or step >= total_steps - max(method.tfinal, 1)):
        scores = [importance_scores(group) for group in groups]
        # Sorted, because kthvalue has no deterministic version on CUDA.
        threshold = torch.cat([score.flatten() for score in scores]).sort().values[pruned - 1]
        for group, score in zip(groups, scores, strict=True):
            values = _stack(group, "lora_E").masked_fill_(score[..., None] <= threshold, 0)  # (layers, rank, 1)
            torch._foreach_copy_([layer.lora_E for layer in group], list(values.unbind()))


def update_importance(layers: Sequence[AdaLoRALinear], beta1: float, beta2: float) -> None:
    """I = |w · ∂L/∂w|;  Ī ← β₁ Ī + (1 − β₁) I;  Ū ← β₂ Ū + (1 − β₂) |I − Ī|    (equations 8 to 10)

    Every operation is on the tensors of all layers: on a GPU, so many small ones would take longer than the model.
    """
    parameters: list[Tensor] = [layer.get_parameter(name) for name in MATRICES for layer in layers]
    sensitivity = [layer.get_buffer(f"{name}_sensitivity") for name in MATRICES for layer in layers]
    uncertainty = [layer.get_buffer(f"{name}_uncertainty") for name in MATRICES for layer in layers]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    importance = list(torch._foreach_mul(parameters, gradients))
    torch._foreach_abs_(importance)
    torch._foreach_mul_(sensitivity, beta1)
    torch._foreach_add_(sensitivity, importance, alpha=1 - beta1)
    torch._foreach_sub_(importance, sensitivity)
    torch._foreach_abs_(importance)
    torch._foreach_mul_(uncertainty, beta2)
    torch._foreach_add_(uncertainty, importance, alpha=1 - beta2)


def importance_scores(layers: Sequence[AdaLoRALinear]) -> Tensor:
    """S (layers, rank): Ī Ū of a singular value, plus the means over its row of Q and its column of P (section 3.2)"""
    a, e, b = (_stack(layers, f"{name}_sensitivity") * _stack(layers, f"{name}_uncertainty") for name in MATRICES)
    return e[..., 0] + a.mean(dim=2) + b.mean(dim=1)


# Fields of peft's AdaLoraConfig, ours by theirs.
FIELDS = {
    "target_r": "target_rank",
    "init_r": "init_rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "tinit": "tinit",
    "tfinal": "tfinal",
    "deltaT": "delta_t",
    "beta1": "beta1",
    "beta2": "beta2",
    "orth_reg_weight": "orth_weight",
}
# Understood too; those of the last line say nothing about an adapter that is loaded (r and the start are not used).
KNOWN = {
    *FIELDS,
    *("target_modules", "exclude_modules", "layers_to_transform", "rank_pattern"),
    *("bias", "total_step", "r", "init_lora_weights"),
}


def to_peft(method: AdaLoRA, config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of peft's AdaLoraConfig; total_step is the least that peft takes, as the run counts its own."""
    paths = {key: path for key, path in linear_modules(config).items() if key[1] in method.targets}
    pattern, full = method.rank_pattern, method.init_rank
    ranks = {path: pattern.get(f"{layer}.{target}", full) for (layer, target), path in paths.items()}
    kept = {f"{path}.lora_E": [i < rank for i in range(full)] for path, rank in ranks.items() if rank < full}
    return {
        **{theirs: getattr(method, ours) for theirs, ours in FIELDS.items()},
        "total_step": method.tinit + method.tfinal + 1,
        "target_modules": write_targets(config, paths),
        "rank_pattern": kept or None,
        "bias": method.bias,
        "fan_in_fan_out": False,
    }


def from_peft(content: dict[str, Any], config: EncoderConfig) -> AdaLoRA:
    """Return the config that peft's AdaLoraConfig fields describe.

    rank_pattern has, for each layer that was pruned, which singular values were kept: peft saves these alone.
    """
    check_fields(content, KNOWN)
    targets = read_targets(content, config)
    names = target_names(targets, config)
    if len(targets) != sum(name in names for _, name in linear_modules(config)):
        raise MinipeftError("target_modules names a layer's linear layers here and not there; AdaLoRA takes all layers")
    given = {ours: content[theirs] for theirs, ours in FIELDS.items() if theirs in content}
    given |= {"bias": content.get("bias", "none"), "modules_to_save": content.get("modules_to_save") or ()}
    method = AdaLoRA(**{"alpha": 8, **given, "targets": names})  # 8 is peft's default
    names_by_key = {f"{path}.lora_E": f"{layer}.{target}" for (layer, target), path in targets.items()}
    pattern = content.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise MinipeftError(f"rank_pattern {pattern!r} is not a table of module names")
    ranks = {}
    for key, kept in pattern.items():
        if key not in names_by_key:
            raise MinipeftError(f"rank_pattern names {key!r}, which is not a targeted layer")
        if not isinstance(kept, list) or len(kept) != method.init_rank or any(type(flag) is not bool for flag in kept):
            raise MinipeftError(f"rank_pattern[{key!r}] {kept!r} is not a list of {method.init_rank} booleans")
        if sum(kept) < method.init_rank:
            ranks[names_by_key[key]] = sum(kept)
    return replace(method, rank_pattern=ranks)


PEFT = PeftFormat(to_peft, from_peft)
