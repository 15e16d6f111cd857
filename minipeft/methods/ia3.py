"""(IA)³ (Liu et al. 2022): trained vectors scale keys, values and the feed-forward's inner activations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.methods import LayerMethodConfig, check_settings
from minipeft.methods.adapted import (
    ALL,
    AdaptedLinear,
    check_modules,
    check_targets,
    target_modules_of,
    train_modules,
)
from minipeft.methods.peft_format import PeftFormat, linear_modules, write_in_every_layer
from minipeft.methods.peft_format.reading import check_fields, check_names, in_every_layer, matching, read_targets
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.layers import Linear


@dataclass(frozen=True)
class IA3(LayerMethodConfig):
    """softmax(Q (l_k ⊙ K)ᵀ / √head_size) (l_v ⊙ V), and W₂ (l_ff ⊙ gelu(W₁ x))    (Liu et al. 2022, section 3.3)

    Args:
        targets: Linear layers that get a vector: query, key, value, output, intermediate, ffn_output.
        feedforward: Those of the targets whose input is scaled; the others' output is.
        modules_to_save: Modules of the encoder that train whole, by transformers' names.

    Parameters: in_features for each target in feedforward and out_features for each other, in each layer; 55,296 for
    roberta-base with the paper's three.

    Raises:
        MinipeftError: for an unknown target.
    """

    targets: tuple[str, ...] = ("key", "value", "ffn_output")
    feedforward: tuple[str, ...] = ("output", "ffn_output")
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self, targets=check_targets, modules_to_save=check_modules)
        scaled = check_targets("feedforward", self.feedforward) if self.feedforward else ()
        targets = scaled if self.targets == (ALL,) else self.targets
        object.__setattr__(self, "feedforward", tuple(target for target in targets if target in scaled))


class IA3Linear(AdaptedLinear):
    """y = l ⊙ (x Wᵀ + b), or y = (l ⊙ x) Wᵀ + b where the input is scaled    (Liu et al. 2022, section 3.3)

    ia3_l, (out_features, 1) or (1, in_features), is l; it starts at 1, so that training starts from the pretrained
    function. x: (tokens, in_features) → (tokens, out_features), in x's dtype; l is float32 and cast.
    """

    def __init__(self, frozen: Linear, scales_input: bool) -> None:
        super().__init__(frozen)
        self.scales_input = scales_input
        shape = (1, self.in_features) if scales_input else (self.out_features, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=frozen.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_merged():
            return super().forward(x)
        scale = self.ia3_l.flatten().to(x.dtype)
        return super().forward(x * scale) if self.scales_input else super().forward(x) * scale

    def merged_weight(self) -> Tensor:
        """Return W with its columns, or its rows, scaled."""
        return self.weight.float() * self.ia3_l

    def merged_bias(self) -> Tensor | None:
        """Return l ⊙ b where the output is scaled."""
        bias = super().merged_bias()
        return bias if bias is None or self.scales_input else bias * self.ia3_l.flatten()


def install(model: SequenceClassifier, method: IA3) -> None:
    modules = target_modules_of(model, method.targets)
    train_modules(model, method.modules_to_save, [module.path for module in modules])
    for module in modules:
        model.encoder.set_submodule(module.path, IA3Linear(module.linear, module.target in method.feedforward))


def to_peft(method: IA3, config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of peft's IA3Config."""
    return {
        "target_modules": write_in_every_layer(config, method.targets),
        "feedforward_modules": write_in_every_layer(config, method.feedforward),
        "fan_in_fan_out": False,
    }


def from_peft(content: dict[str, Any], config: EncoderConfig) -> IA3:
    """Return the config that peft's IA3Config fields describe."""
    check_fields(content, {"target_modules", "exclude_modules", "feedforward_modules", "init_ia3_weights"})
    found = read_targets(content, config)
    feedforward = content.get("feedforward_modules")
    if isinstance(feedforward, str):
        inputs = matching(feedforward, tuple(found.values()), "feedforward_modules")
    else:  # peft asks for no dot before these suffixes
        ends = tuple(check_names(feedforward, "feedforward_modules"))
        inputs = {path for path in found.values() if path.endswith(ends)}
    scaled = {key: path for key, path in found.items() if path in inputs}
    return IA3(
        in_every_layer(found, linear_modules(config)),
        in_every_layer(scaled, found, "feedforward_modules"),
        content.get("modules_to_save") or (),
    )


PEFT = PeftFormat(to_peft, from_peft)
