"""VeRA (Kopiczko et al. 2024): one frozen random pair A, B for all layers, and two trained vectors in each."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.errors import MinipeftError, check_choice, check_float, check_int, check_probability, check_seed
from minipeft.methods import LayerMethodConfig, check_settings
from minipeft.methods.adapted import (
    AdaptedLinear,
    check_modules,
    check_targets,
    target_modules_of,
    train_biases,
    train_modules,
)
from minipeft.methods.peft_format import PeftFormat, linear_modules, write_in_every_layer
from minipeft.methods.peft_format.reading import check_fields, in_every_layer, read_targets
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.layers import Linear, dropout

BIASES = ("none", "all", "vera_only")


@dataclass(frozen=True)
class VeRA(LayerMethodConfig):
    """h = W x + b + Λ_b B Λ_d A dropout(x), Λ_b and Λ_d diagonal and trained    (Kopiczko et al. 2024, equation 2)

    Args:
        rank: r, the inner dimension of B A.
        d_initial: Initial value of Λ_d; Λ_b starts at 0.
        dropout: Probability on the input of A, in training.
        targets: Linear layers, by name: query, key, value, output, intermediate, ffn_output.
        seed: Seed of A and B.
        save_projection: Whether the adapter's file holds A and B; otherwise loading draws them from the seed.
        bias: Biases that are trained too: "none", "all" of the encoder, or "vera_only" for those of the targets.
        modules_to_save: Modules of the encoder that are trained entirely, by transformers' names.

    Parameters: rank + out_features for each target in each layer; 24,576 for roberta-base with rank 256 on query and
    value.

    Raises:
        MinipeftError: for a rank below 1, a dropout outside [0, 1), an unknown target or a bad seed.
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    seed: int = 0
    save_projection: bool = True
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self, rank=check_int, d_initial=check_float, dropout=check_probability, seed=check_seed)
        check_settings(self, targets=check_targets, modules_to_save=check_modules)
        if not isinstance(self.save_projection, bool):
            raise MinipeftError(f"save_projection {self.save_projection!r} is neither True nor False")
        check_choice("bias", self.bias, BIASES)


class Projections(nn.Module):
    """A (rank, in_features) and B (out_features, rank) in the largest sizes of the targets; each target uses a slice.

    They are Kaiming-uniform, drawn on the CPU from the method's seed, A first, as peft does.
    """

    vera_A: Tensor
    vera_B: Tensor

    def __init__(self, in_features: int, out_features: int, method: VeRA, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(method.seed)
        for name, shape in (("vera_A", (method.rank, in_features)), ("vera_B", (out_features, method.rank))):
            drawn = nn.init.kaiming_uniform_(torch.empty(shape, device="cpu"), generator=generator)
            self.register_buffer(name, drawn.to(device), persistent=method.save_projection)


class VeRALinear(AdaptedLinear):
    """y = x Wᵀ + b + λ_b ⊙ (λ_d ⊙ dropout(x) Aᵀ) Bᵀ    (Kopiczko et al. 2024, equation 2)

    vera_lambda_d (rank,) starts at d_initial and vera_lambda_b (out_features,) at 0, so that training starts from the
    pretrained function. x: (tokens, in_features) → (tokens, out_features), in x's dtype; the vectors, A and B are
    float32 and cast.
    """

    def __init__(self, frozen: Linear, projections: Projections, method: VeRA) -> None:
        super().__init__(frozen)
        self.dropout = method.dropout
        self.shared = (projections,)  # in a tuple, so that they are not a submodule here; the encoder holds them once
        device = frozen.weight.device
        self.vera_lambda_d = nn.Parameter(torch.full((method.rank,), method.d_initial, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.out_features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.is_merged():
            return y
        a, b = self._slices()
        low = F.linear(dropout(x, self.dropout, self.training), a.to(x.dtype)) * self.vera_lambda_d.to(x.dtype)
        return y + F.linear(low, b.to(x.dtype)) * self.vera_lambda_b.to(x.dtype)

    def merged_weight(self) -> Tensor:
        """Return W + Λ_b B Λ_d A."""
        a, b = self._slices()
        return self.weight.float() + self.vera_lambda_b[:, None] * (b @ (self.vera_lambda_d[:, None] * a))

    def _slices(self) -> tuple[Tensor, Tensor]:
        """Return A (rank, in_features) and B (out_features, rank) of this layer."""
        (projections,) = self.shared
        return projections.vera_A[:, : self.in_features], projections.vera_B[: self.out_features]


def install(model: SequenceClassifier, method: VeRA) -> None:
    modules = target_modules_of(model, method.targets)
    train_modules(model, method.modules_to_save, [module.path for module in modules])
    frozen_layers = [module.linear for module in modules]
    projections = Projections(
        max(frozen.in_features for frozen in frozen_layers),
        max(frozen.out_features for frozen in frozen_layers),
        method,
        frozen_layers[0].weight.device,
    )
    model.encoder.vera = projections
    for module in modules:
        model.encoder.set_submodule(module.path, VeRALinear(module.linear, projections, method))
    train_biases(model, method.bias)


# Our field → peft's.
FIELDS = {
    "rank": "r",
    "d_initial": "d_initial",
    "dropout": "vera_dropout",
    "seed": "projection_prng_key",
    "save_projection": "save_projection",
    "bias": "bias",
    "modules_to_save": "modules_to_save",
}


def to_peft(method: VeRA, config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of peft's VeraConfig."""
    return {
        **{theirs: getattr(method, ours) for ours, theirs in FIELDS.items()},
        "target_modules": write_in_every_layer(config, method.targets),
        "fan_in_fan_out": False,
    }


def from_peft(content: dict[str, Any], config: EncoderConfig) -> VeRA:
    """Return the config that peft's VeraConfig fields describe."""
    known = {*FIELDS.values(), "target_modules", "exclude_modules", "layers_to_transform", "init_weights"}
    check_fields(content, known)
    targets = in_every_layer(read_targets(content, config), linear_modules(config))
    return VeRA(
        targets=targets, **{ours: content[theirs] for ours, theirs in FIELDS.items() if content.get(theirs) is not None}
    )


PEFT = PeftFormat(
    to_peft,
    from_peft,
    names={f"encoder.vera.{name}": f"base_model.{name}" for name in ("vera_A", "vera_B")},
)
