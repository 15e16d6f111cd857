"""y = x Wᵀ + b, through the machine's fastest product."""

from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (tokens, in_features), weight (out_features, in_features), bias (out_features,) or None
    → (tokens, out_features).

    On a CPU with AVX-512, float32 and bfloat16 use oneDNN. In float32, F.linear uses MKL there, which ignores AVX-512
    on some CPUs. In bfloat16, F.linear uses oneDNN too, but reorders the weight in every call; here a frozen weight is
    reordered once. All other cases use F.linear: other CPUs and devices, other dtypes, and torch.compile.
    torch.backends.mkldnn.flags(enabled=False) turns oneDNN off.
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
