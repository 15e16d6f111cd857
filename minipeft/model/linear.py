"""y = x Wᵀ + b, through the machine's fastest product."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (tokens, in_features), weight (out_features, in_features), bias (out_features,) or None
    → (tokens, out_features).

    float32 and bfloat16 on a CPU with AVX-512 go through oneDNN. For float32 torch's own product there is MKL's, which
    leaves AVX-512 unused on some makes of CPU; for bfloat16 it is oneDNN's as well, but reorders each weight in
    every call, which is done once here for the frozen ones. Elsewhere it is F.linear, and so it is for other dtypes and
    while torch.compile traces. torch.backends.mkldnn.flags(enabled=False) turns oneDNN off.
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
    """x Wᵀ + b; the weight may be a transposed view, or laid out."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _prepacked(weight: Tensor) -> Tensor:
    """A copy in the blocks that oneDNN's product reads; it is good for no other operation."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


class _PrepackedWeights:
    """A frozen weight laid out for x Wᵀ and, transposed, for its gradient; each from its first use on."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.state = weight.detach(), _state(weight)

    @cached_property
    def forward(self) -> Tensor:
        return _prepacked(self.weight)

    @cached_property
    def backward(self) -> Tensor:
        return _prepacked(self.weight.t())


def _state(weight: Tensor) -> tuple[int, int, torch.dtype]:
    """Changes when the weight is written to, or given another place (but for what is written through its .data)."""
    return weight._version, weight.data_ptr(), weight.dtype


_LAYOUTS = WeakIdKeyDictionary()  # Parameter → _PrepackedWeights, while the parameter lives


def _prepacked_weights_of(weight: Tensor) -> _PrepackedWeights | None:
    """For frozen bfloat16 parameters; in float32 they gain little compared with the memory they take."""
    frozen = isinstance(weight, nn.Parameter) and not weight.requires_grad
    if not frozen or weight.dtype != torch.bfloat16 or weight.is_inference():  # which has no version to look at
        return None
    found = _LAYOUTS.get(weight)
    if found is None or found.state != _state(weight):
        found = _LAYOUTS[weight] = _PrepackedWeights(weight)
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layouts: _PrepackedWeights | None) -> Tensor:
        ctx.layouts = layouts
        used = weight if x.requires_grad and layouts is None else None
        ctx.save_for_backward(x if weight.requires_grad else None, used)
        return _product(x, weight if layouts is None else layouts.forward, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            _product(grad, weight.t() if ctx.layouts is None else ctx.layouts.backward, None) if of_x else None,
            _product(grad.t(), x.t(), None) if of_weight else None,
            grad.sum(0) if of_bias else None,
            None,
        )
