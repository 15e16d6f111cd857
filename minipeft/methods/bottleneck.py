"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2020): thin trained layers between the frozen ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.errors import check_choice, check_int
from minipeft.methods import LayerMethodConfig, check_settings
from minipeft.methods.adapted import AdaptedLinear, target_modules_of
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.layers import LayerNorm, Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class Houlsby(LayerMethodConfig):
    """r ← r + U f(D r) after each sublayer, r its output before the residual sum    (Houlsby et al. 2019, section 2.1)

    Args:
        size: m, the inner dimension; the paper takes 8, 64 or 256 a task.
        activation: f: gelu, which is that of the authors' code, relu or tanh.

    Every LayerNorm of the encoder trains too, as in the paper; the authors' code trains the embeddings' as well.
    The adapter stands before the sublayer's dropout; in the authors' code, after it.
    Parameters: 2 (2 m hidden_size + m + hidden_size) + 4 hidden_size a layer and 2 hidden_size in the embeddings;
    2,417,664 for roberta-base.

    Raises:
        MinipeftError: for a size below 1 and an unknown activation.
    """

    size: int = 64
    activation: str = "gelu"

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Pfeiffer(LayerMethodConfig):
    """r ← r + U f(D h) after the feed-forward, h = LayerNorm(x + r)    (Pfeiffer et al. 2020, MAD-X, equation 1)

    r is the feed-forward's output and x its input; the layer's own LayerNorm(x + r) then comes once more, so that the
    layer gives LayerNorm(x + r + U f(D h)), with the same frozen LayerNorm in both places.

    Args:
        size: m, the inner dimension: hidden_size / 16 of roberta-base (Pfeiffer et al. 2021, AdapterFusion).
        activation: f: relu, as in the equation, gelu or tanh.

    Parameters: 2 m hidden_size + m + hidden_size a layer; 894,528 for roberta-base.

    Raises:
        MinipeftError: for a size below 1 and an unknown activation.
    """

    size: int = 48
    activation: str = "relu"

    def __post_init__(self) -> None:
        _check(self)


def _check(method: Houlsby | Pfeiffer) -> None:
    check_settings(method, size=check_int)
    check_choice("activation", method.activation, ACTIVATIONS)


class Bottleneck(nn.Module):
    """U f(D x): x (tokens, hidden_size) → the same shape, in x's dtype.

    down is D (size, hidden_size), up is U (hidden_size, size), each with a bias. The biases start at 0, the weights
    normal with standard deviation 0.01, cut at two of these (Houlsby et al. 2019, section 3.6): close to no change.
    """

    def __init__(self, hidden_size: int, size: int, activation: str, device: torch.device) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.down = Linear(hidden_size, size, device=device)
        self.up = Linear(size, hidden_size, device=device)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))


class BottleneckLinear(AdaptedLinear):
    """r + U f(D r), r = x Wᵀ + b: (tokens, in_features) → (tokens, out_features)    (Houlsby et al. 2019)"""

    def __init__(self, frozen: Linear, size: int, activation: str) -> None:
        super().__init__(frozen)
        self.adapter = Bottleneck(self.out_features, size, activation, frozen.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        r = super().forward(x)
        return r + self.adapter(r)


class BottleneckLayerNorm(LayerNorm):
    """LayerNorm(z + U f(D LayerNorm(z))), z = x + r: (tokens, hidden_size) → the same    (Pfeiffer et al. 2020)

    z + U f(D h) is the residual sum x + (r + U f(D h)) of MAD-X's equation 1.
    """

    def __init__(self, frozen: LayerNorm, size: int, activation: str) -> None:
        nn.Module.__init__(self)
        self.normalized_shape, self.eps, self.elementwise_affine = frozen.normalized_shape, frozen.eps, True
        self.weight, self.bias = frozen.weight, frozen.bias
        self.adapter = Bottleneck(frozen.normalized_shape[0], size, activation, frozen.weight.device)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z + self.adapter(super().forward(z)))


def install(model: SequenceClassifier, method: Houlsby | Pfeiffer) -> None:
    """Put the adapters into a frozen model."""
    if isinstance(method, Pfeiffer):
        for layer in model.encoder.layers[model.encoder.frozen_layers or 0 :]:
            frozen = layer.output_layer_norm
            assert isinstance(frozen, LayerNorm)
            layer.output_layer_norm = BottleneckLayerNorm(frozen, method.size, method.activation)
        return
    for module in target_modules_of(model, ("output", "ffn_output")):
        model.encoder.set_submodule(module.path, BottleneckLinear(module.linear, method.size, method.activation))
    for part in model.encoder.modules():
        if isinstance(part, LayerNorm):
            part.requires_grad_(True)
