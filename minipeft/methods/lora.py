"""LoRA (Hu et al. 2021): a frozen linear layer plus a trained product of two thin matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.errors import MinipeftError, finite_number, whole_number
from minipeft.model.roberta import LINEAR_NAMES, EncoderLayer, Linear, SequenceClassifier

PEFT_NAMES = {"attention.output.dense": "output", "intermediate.dense": "intermediate", "output.dense": "ffn_output"}


@dataclass(frozen=True)
class LoRA:
    """h = W x + b + (alpha / rank) · B A dropout(x)    (Hu et al. 2021, equation 3)

    rank      r, the inner dimension of B A
    alpha     the scaling's numerator
    dropout   probability on the input of A, in training
    targets   linear layers, by name: query, key, value, output, intermediate, ffn_output

    Parameters: rank · (in_features + out_features) for each target in each layer; 73,728 for roberta-base with rank 2
    on query and value. Raises MinipeftError for a rank below 1, a dropout outside [0, 1) or an unknown target.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole_number("rank", self.rank))
        object.__setattr__(self, "alpha", finite_number("alpha", self.alpha))
        if not 0 <= finite_number("dropout", self.dropout) < 1:
            raise MinipeftError(f"dropout {self.dropout!r} is not a probability below 1")
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not isinstance(targets, (tuple, list)):
            raise MinipeftError(f"targets {targets!r} is no list of names; name some of {', '.join(LINEAR_NAMES)}")
        names = [name for target in targets for name in str(target).split(",")]
        targets = tuple(dict.fromkeys(PEFT_NAMES.get(name, name) for name in names))
        if not targets:
            raise MinipeftError(f"no targets; name some of {', '.join(LINEAR_NAMES)}")
        for target in targets:
            if target not in LINEAR_NAMES:
                raise MinipeftError(f"unknown target {target!r}; one of {', '.join(LINEAR_NAMES)}")
        object.__setattr__(self, "targets", targets)


class LoRALinear(Linear):
    """y = x Wᵀ + b + (alpha / rank) · dropout(x) Aᵀ Bᵀ    (Hu et al. 2021, equation 3)

    weight (out_features, in_features) and bias (out_features,) are the frozen layer's own; lora_A (rank, in_features)
    starts Kaiming-uniform and lora_B (out_features, rank) at 0, so that training starts from the pretrained function.
    x: (tokens, in_features) → (tokens, out_features), in x's dtype; A and B are float32 and cast.
    """

    def __init__(self, frozen: Linear, rank: int, alpha: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.weight, self.bias = frozen.weight, frozen.bias
        self.scaling = alpha / rank
        self.dropout = dropout
        device = frozen.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.unmerged_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.unmerged_weight is not None:
            if self.training and torch.is_grad_enabled():
                raise MinipeftError("the adapter is merged, so it cannot train; call minipeft.unmerge first")
            return y
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))  # (tokens, rank)
        return torch.addmm(y, low * self.scaling, self.lora_B.to(x.dtype).T)

    @torch.no_grad()
    def merge(self) -> None:
        """W ← W + (alpha / rank) · B A, summed in float32; the frozen W is kept aside."""
        if self.unmerged_weight is None:
            self.unmerged_weight = self.weight.detach().clone()
            merged = self.weight.float() + self.scaling * (self.lora_B @ self.lora_A)
            self.weight.copy_(merged.to(self.weight.dtype))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the frozen W back, to the bit."""
        if self.unmerged_weight is not None:
            self.weight.copy_(self.unmerged_weight)
            self.unmerged_weight = None


def install(model: SequenceClassifier, method: LoRA) -> None:
    for layer in model.encoder.layers:
        assert isinstance(layer, EncoderLayer)
        for target in method.targets:
            frozen = getattr(layer, target)
            setattr(layer, target, LoRALinear(frozen, method.rank, method.alpha, method.dropout))
