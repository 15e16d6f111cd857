"""The layers that every family is built of: linear, LayerNorm, embedding, dropout and the activations.

They are torch's, with three differences. Frozen weights may be bfloat16 and are cast to the dtype of x. On the CPU,
products and dropout take faster paths than F.linear and F.dropout. And nothing is initialized on the meta device.
"""

import math
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from minipeft.device import cpu_vendor

# x Φ(x), Φ the normal distribution (Hendrycks and Gimpel 2016), and its approximation by tanh.
_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
}


class Linear(nn.Linear):
    """y = x Wᵀ + b, in x's dtype: frozen weights are stored in it, trained ones (float32) are cast."""

    def forward(self, x: Tensor) -> Tensor:
        # Not by torch.autocast, which looks up a dtype for every operation and computes LayerNorm in float32.
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """y = (x − mean) / √(variance + eps) · weight + bias, in x's dtype (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class Embedding(nn.Embedding):
    """nn.Embedding that draws no numbers on the meta device, because torch would import torch._dynamo (1 s) for it."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (tokens, in_features), weight (out_features, in_features), bias (out_features,) or None
    → (tokens, out_features).

    On a CPU with AVX-512, bfloat16 uses oneDNN, and so does float32 unless the CPU is Intel's. In float32, F.linear
    uses MKL there, which is the faster of the two on Intel's CPUs and ignores AVX-512 on others. In bfloat16, F.linear
    uses oneDNN too, but reorders the weight in every call; here a frozen weight is reordered once. All other cases use
    F.linear: other CPUs and devices, other dtypes, and torch.compile. torch.backends.mkldnn.flags(enabled=False) turns
    oneDNN off.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and uses_onednn(x.dtype):
        return _Linear.apply(x, weight, bias, _prepacked_weights_of(weight))  # type: ignore[no-untyped-call]
    return F.linear(x, weight, bias)


def uses_onednn(dtype: torch.dtype) -> bool:
    """Whether products of that dtype go through oneDNN on the CPU."""
    return torch._C._get_mkldnn_enabled() and _has_product(dtype)


@cache
def _has_product(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16) or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if dtype == torch.float32 and "GenuineIntel" in cpu_vendor():
        return False
    try:  # operators that torch.compile itself uses, but that no release promises
        x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
        products = _product(x, weight.t().contiguous().t(), None), _product(x, _prepacked(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return all(torch.equal(product, torch.full((2, 4), 3.0, dtype=dtype)) for product in products)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b; the weight may be a transposed view, or prepacked."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _prepacked(weight: Tensor) -> Tensor:
    """Return a copy in the blocked layout that oneDNN's product reads; no other operation can read it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


class _PrepackedWeights:
    """A frozen weight prepacked for x Wᵀ and, transposed, for the gradient of x; each is made when first used."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.state = weight.detach(), _state(weight)

    @cached_property
    def forward(self) -> Tensor:
        return _prepacked(self.weight)

    @cached_property
    def backward(self) -> Tensor:
        return _prepacked(self.weight.t())


def _state(weight: Tensor) -> tuple[int, int, torch.dtype]:
    """Return a value that changes when the weight is written to or moved; writes through .data are not seen."""
    return weight._version, weight.data_ptr(), weight.dtype


_LAYOUTS = WeakIdKeyDictionary()  # Parameter → _PrepackedWeights, while the parameter lives


def _prepacked_weights_of(weight: Tensor) -> _PrepackedWeights | None:
    """Return them for a frozen bfloat16 parameter, else None; in float32 they take memory and gain little."""
    frozen = isinstance(weight, nn.Parameter) and not weight.requires_grad
    if not frozen or weight.dtype != torch.bfloat16 or weight.is_inference():  # without a _version
        return None
    found = _LAYOUTS.get(weight)
    if found is None or found.state != _state(weight):
        found = _LAYOUTS[weight] = _PrepackedWeights(weight)
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layouts: _PrepackedWeights | None) -> Tensor:
        ctx.layouts = layouts
        # Only what the backward pass reads is saved: for a frozen weight that is not x.
        saved_weight = weight if x.requires_grad and layouts is None else None
        ctx.save_for_backward(x if weight.requires_grad else None, saved_weight)
        return _product(x, weight if layouts is None else layouts.forward, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if needs_x:
            weight = weight.t() if ctx.layouts is None else ctx.layouts.backward
        return (
            _product(grad, weight, None) if needs_x else None,
            _product(grad.t(), x.t(), None) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            None,
        )


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Return x · keep / (1 − p), where keep is 1 with probability 1 − p, else 0; x itself if not `training` or p = 0.

    On the CPU the positions of the dropped numbers are drawn, in place of a random number for each position: this is
    faster than F.dropout. The seed comes from torch's generator. Other devices use F.dropout.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu" or probability >= 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    return _Dropout.apply(x, probability)  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        ctx.scale, dropped = 1 / (1 - probability), _draw_positions(x.numel(), probability)
        ctx.save_for_backward(dropped)
        return _drop(x, dropped, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _drop(grads[0], ctx.saved_tensors[0], ctx.scale), None


def _drop(x: Tensor, positions: Tensor, scale: float) -> Tensor:
    y = x.contiguous() * scale
    y.view(-1).index_fill_(0, positions, 0)
    return y


def _draw_positions(count: int, probability: float) -> Tensor:
    """Draw each of the numbers 0 to count - 1 with a probability, and return them in their order, int64.

    The distances between them have a geometric distribution: an exponential one, rounded down.
    """
    seed = int(torch.randint(1 << 62, ()))
    expected = count * probability
    size = int(expected + 10 * math.sqrt(expected) + 10)  # more than are needed, but for a chance below 1e-20
    distances = np.random.Generator(np.random.SFC64(seed)).standard_exponential(size, dtype=np.float32)
    distances /= max(-math.log1p(-probability), 1e-30)  # so that they are finite
    # No distance beyond the end need be larger; twice the count, because float32 rounds it.
    positions = np.cumsum(np.minimum(distances, 2 * count).astype(np.int64) + 1) - 1
    return torch.from_numpy(positions[: np.searchsorted(positions, count)])


def init_weights(module: nn.Module, std: float) -> None:
    """Initialize as BERT does: weights normal with `std`, biases 0, LayerNorm 1 and 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, (nn.Linear, nn.LayerNorm)) and part.bias is not None:
            nn.init.zeros_(part.bias)
