"""DoRA (Liu et al. 2024): LoRA changes the direction of the rows of a weight, and a trained vector their lengths."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.methods.lora import LoRA, LoRALinear, install_low_rank, to_peft
from minipeft.methods.peft_format import PeftFormat
from minipeft.methods.peft_format.reading import read_lora
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.layers import Linear


@dataclass(frozen=True)
class DoRA(LoRA):
    """h = m ⊙ (V / ‖V‖) x + b, V = W + s · B A    (Liu et al. 2024, equation 5)

    ‖V‖ is the length of each row of V; m is trained, and starts as that of W. The settings are LoRA's.
    Parameters: LoRA's and out_features for each target in each layer; 92,160 for roberta-base with rank 2 on query and
    value.

    Raises:
        MinipeftError: as LoRA does.
    """


class DoRALinear(LoRALinear):
    """y = x (m / ‖V‖ ⊙ V)ᵀ + b, V = W + s · B A; ‖V‖ is a constant for the gradient (Liu et al. 2024, section 4.3).

    lora_magnitude_vector (out_features,) is m. Dropout applies to the input of A only.
    """

    def __init__(self, frozen: Linear, *low_rank: Any) -> None:
        super().__init__(frozen, *low_rank)
        self.lora_magnitude_vector = nn.Parameter(self._lengths())

    def forward(self, x: Tensor) -> Tensor:
        if self.is_merged():
            return super().forward(x)
        scale = (self.lora_magnitude_vector / self._lengths()).to(x.dtype)  # (out_features,)
        if self.bias is None:
            return super().forward(x) * scale
        bias = self.bias.to(x.dtype)
        return (super().forward(x) - bias) * scale + bias

    def merged_weight(self) -> Tensor:
        """Return m / ‖V‖ ⊙ V."""
        return (self.lora_magnitude_vector / self._lengths())[:, None] * super().merged_weight()

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        return torch.linalg.vector_norm(super().merged_weight(), dim=1)


def install(model: SequenceClassifier, method: DoRA) -> None:
    install_low_rank(model, method, DoRALinear)


PEFT = PeftFormat(
    write=lambda method, config: to_peft(method, config) | {"use_dora": True},
    read=lambda content, config: DoRA(**read_lora(content, config, "use_dora")),
    names={"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"},
    use_dora=True,
    layer=DoRALinear,
)
