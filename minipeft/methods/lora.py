"""LoRA (Hu et al. 2021): a frozen linear layer plus a trained product of two thin matrices.

    LoRA         the settings               install      replaces the targets of a frozen model by LoRALinear layers
    LoRALinear   the layer                  PEFT         translates the settings to and from peft's adapter_config.json

Why it works with few parameters: the change of a weight that a task needs has a low rank (Aghajanyan et al. 2021), so
it fits a product of two thin matrices. Only these need gradients and optimizer states.

Refinements that change no formula are settings: rsLoRA's scaling, PiSSA's initialization, LoRA+'s learning rates, ranks
by layer. There is no LoRA of embeddings, because the paper adapts linear layers alone, and no quantized base model,
because an encoder of some hundred million parameters fits a GPU as it is. One model has one adapter;
adapters/adapter_set.py runs several at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.errors import MinipeftError, check_choice, check_float, check_int, check_probability
from minipeft.methods import LayerMethodConfig, check_settings
from minipeft.methods.adapted import (
    AdaptedLinear,
    Factors,
    SharedCasts,
    TargetModule,
    cast_factors,
    check_modules,
    check_rank,
    check_targets,
    target_modules_of,
    train_biases,
    train_modules,
)
from minipeft.methods.peft_format import PeftFormat, linear_modules, write_targets
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.layers import Linear, dropout

INITIALISATIONS = ("kaiming", "gaussian", "pissa")
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoRA(LayerMethodConfig):
    """h = W x + b + s · B A dropout(x), s = alpha / rank    (Hu et al. 2021, equation 3)

    Args:
        rank: r, the inner dimension of B A.
        alpha: The scaling's numerator.
        dropout: Probability on the input of A, in training.
        targets: Linear layers, by name: query, key, value, output, intermediate, ffn_output.
        rslora: s = alpha / √rank, so that a larger rank does not shrink the update (Kalajdzievski 2023, theorem 3.2).
        init: "kaiming" (uniform) or "gaussian" (standard deviation 1 / rank) for A, with B = 0; or "pissa": A and B
            hold the `rank` largest singular values of W, and W the others (Meng et al. 2024, equations 2 to 4).
        lr_ratio: The learning rate of B over that of A (LoRA+, Hayou et al. 2024, which takes 16).
        rank_pattern: Other ranks by "layer.target", else by target, else by layer: {"11.query": 16, "value": 4,
            "0": 0}; 0 leaves the layer out.
        alpha_pattern: Other alphas, by the same keys.
        bias: Biases that are trained too: "none", "all" of the encoder, or "lora_only" for those of the targets.
        modules_to_save: Modules of the encoder that are trained entirely, by transformers' names: ("LayerNorm",).

    Parameters: rank · (in_features + out_features) for each target in each layer; 73,728 for roberta-base with rank 2
    on query and value.

    Raises:
        MinipeftError: for a rank below 1, a dropout outside [0, 1), an unknown target or choice.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    rslora: bool = False
    init: str = "kaiming"
    lr_ratio: float = 1.0
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # All checks come here, before a checkpoint is loaded. What needs the model's shape is checked by `install`.
        check_settings(self, rank=check_int, alpha=check_float, lr_ratio=check_float, dropout=check_probability)
        check_settings(self, targets=check_targets, modules_to_save=check_modules)
        if not isinstance(self.rslora, bool):
            raise MinipeftError(f"rslora {self.rslora!r} is neither True nor False")
        check_choice("init", self.init, INITIALISATIONS)
        check_choice("bias", self.bias, BIASES)
        if self.lr_ratio <= 0:
            raise MinipeftError(f"lr_ratio {self.lr_ratio!r} is not above 0; 1 gives A and B the same learning rate")
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), dict):
                raise MinipeftError(f'{name} {getattr(self, name)!r} is not a table; write it like {{"11.query": 16}}')
        for key, value in self.rank_pattern.items():
            check_int(f"rank_pattern[{key!r}]", value, least=0)
        for key, alpha in self.alpha_pattern.items():
            check_float(f"alpha_pattern[{key!r}]", alpha)

    def rank_of(self, layer: int, target: str) -> int:
        """Return the rank of a target in layer `layer`, counted from 0; with rank 0 the layer is not adapted."""
        return _of_pattern(self.rank_pattern, layer, target, self.rank)

    def alpha_of(self, layer: int, target: str) -> float:
        """Return the alpha of a target in layer `layer`."""
        return _of_pattern(self.alpha_pattern, layer, target, self.alpha)


def _of_pattern(pattern: dict[str, Any], layer: int, target: str, default: Any) -> Any:
    # From the most specific key to the least; the first that is there counts.
    return next((pattern[key] for key in (f"{layer}.{target}", target, str(layer)) if key in pattern), default)


class LoRALinear(AdaptedLinear):
    """y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ, s = alpha / rank    (Hu et al. 2021, equation 3)

    weight (out_features, in_features) and bias (out_features,) are the frozen layer's. lora_A (rank, in_features) is
    Kaiming-uniform at first and lora_B (out_features, rank) 0, so that training starts from the pretrained function.
    x: (tokens, in_features) → (tokens, out_features), in the dtype of x; A and B are float32 and are cast.

    Args:
        frozen: The linear layer that this one replaces.
        rank, alpha, dropout, rslora, init: See LoRA.

    Raises:
        MinipeftError: when a merged layer is to be trained.
    """

    def __init__(
        self,
        frozen: Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "kaiming",
    ) -> None:
        super().__init__(frozen)
        # Divided by the rank, so that the best learning rate depends less on it (Hu et al. 2021, section 4.1).
        self.scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.dropout = dropout
        self.shared_factors: Factors | None = None  # set by SharedCasts during a forward pass of the encoder
        device = frozen.weight.device
        # Float32 also for a bfloat16 model: the steps of the optimizer are too small for bfloat16's 8 bits.
        # B is 0, so that B A = 0. If A were 0 as well, neither would ever have a gradient.
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        if init == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # nn.Linear's own initialization
        # A model on the meta device has no numbers to decompose; it gets its tensors from an adapter's file.
        if init == "pissa" and device.type != "meta":
            self._init_pissa()

    def forward(self, x: Tensor) -> Tensor:
        """x: (tokens, in_features) → (tokens, out_features), with the merged weight if the layer is merged."""
        y = super().forward(x)  # (tokens, out_features)
        if self.is_merged():
            return y
        # The encoder casts A and B of all layers together; a layer that is called alone casts its own.
        a, b = self.shared_factors or cast_factors([self], x.dtype)[0]  # A and s · Bᵀ
        low = F.linear(dropout(x, self.dropout, self.training), a)  # (tokens, rank)
        # x A first, then B: rank · (in + out) products per token, where the matrix B A would need in · out.
        return torch.addmm(y, low, b)

    @staticmethod
    def stack_a(layers: Sequence[LoRALinear]) -> Tensor:
        """Return A of layers of one shape: (layers, rank, in_features)."""
        return torch.stack([layer.lora_A for layer in layers])

    def merged_weight(self) -> Tensor:
        """Return W + s · B A, (out_features, in_features), float32."""
        # In float32, so that a bfloat16 weight is rounded once, when the sum is stored.
        return self.weight.float() + self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def _init_pissa(self) -> None:
        """W = U Σ Vᵀ → s · B A is the first `rank` terms, with √Σ on each side; the frozen weight keeps the others."""
        rank = len(self.lora_A)
        # u (out_features, k), sigma (k,), v (k, in_features), k = min(out_features, in_features)
        u, sigma, v = torch.linalg.svd(self.weight.float(), full_matrices=False)
        # A and B both get the square root of each singular value, so that neither is much larger.
        root = (sigma[:rank] / self.scaling).sqrt()
        self.lora_A.copy_(root[:, None] * v[:rank])
        self.lora_B.copy_(u[:, :rank] * root)
        self.weight = nn.Parameter(  # not in place: other models may share the weights of the checkpoint
            (self.weight.float() - self.scaling * (self.lora_B @ self.lora_A)).to(self.weight.dtype), False
        )


def install(model: SequenceClassifier, method: LoRA) -> None:
    """Replace the targets of a frozen model by LoRALinear layers."""
    install_low_rank(model, method, LoRALinear)


def install_low_rank(model: SequenceClassifier, method: LoRA, kind: type[LoRALinear]) -> None:
    """Replace the targets by layers of `kind`, and unfreeze the biases and modules that `method` names."""
    modules = target_modules_of(model, method.targets)
    # Every check comes before the first layer is replaced.
    _check_patterns(method, modules)
    adapted = [module for module in modules if method.rank_of(module.layer, module.target)]
    train_modules(model, method.modules_to_save, [module.path for module in adapted])
    for layer, target, path, frozen in adapted:
        rank, alpha = method.rank_of(layer, target), method.alpha_of(layer, target)
        model.encoder.set_submodule(path, kind(frozen, rank, alpha, method.dropout, method.rslora, method.init))
    # With the default targets, the 24 layers of roberta-base have one shape: their A and B are cast as two tensors.
    model.encoder.low_rank = SharedCasts([part for part in model.modules() if isinstance(part, LoRALinear)])
    train_biases(model, method.bias)  # last, because "lora_only" looks for the layers that were just installed


def _check_patterns(method: LoRA, modules: list[TargetModule]) -> None:
    """Raise for a key without a targeted layer, a rank above the size of a layer, and where no layer is adapted."""
    # For each targeted layer the three keys that may name it: "11.query", "query", "11".
    keys = [(f"{module.layer}.{module.target}", module.target, str(module.layer)) for module in modules]
    known = {key for names in keys for key in names}
    for name in ("rank_pattern", "alpha_pattern"):
        for key in getattr(method, name):
            if key not in known:
                raise MinipeftError(
                    f"{name}: {key!r} fits no target. The targets are {', '.join(method.targets)} in layers "
                    f"{modules[0].layer} to {modules[-1].layer}: write {', '.join(map(repr, keys[-1]))}"
                )
    ranks = [method.rank_of(module.layer, module.target) for module in modules]
    if not any(ranks):
        raise MinipeftError("rank_pattern gives every layer rank 0. Leave one in")
    for rank, module in zip(ranks, modules, strict=True):
        check_rank(rank, module)


def to_peft(method: LoRA, config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of peft's LoraConfig."""
    # peft has no rank 0. A layer that the pattern leaves out is not among the targets.
    keys = [key for key in linear_modules(config) if key[1] in method.targets]  # (layer, target)
    ranks = {key: method.rank_of(*key) for key in keys if method.rank_of(*key)}
    alphas = {key: method.alpha_of(*key) for key in ranks}
    paths = {key: write_targets(config, [key])[0] for key in ranks}
    return {
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": write_targets(config, ranks),
        "use_rslora": method.rslora,
        "init_lora_weights": True if method.init == "kaiming" else method.init,
        "bias": method.bias,
        "fan_in_fan_out": False,
        "rank_pattern": {paths[key]: rank for key, rank in ranks.items() if rank != method.rank},
        "alpha_pattern": {paths[key]: alpha for key, alpha in alphas.items() if alpha != method.alpha},
    }


def from_peft(content: dict[str, Any], config: EncoderConfig) -> LoRA:
    """Return the config that peft's LoraConfig fields describe."""
    from minipeft.methods.peft_format.reading import read_lora  # training writes adapters and reads none

    return LoRA(**read_lora(content, config))


PEFT = PeftFormat(
    to_peft,
    from_peft,
    names={"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"},
    layer=LoRALinear,
)
