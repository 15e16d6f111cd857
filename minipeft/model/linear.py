"""y = x Wᵀ + b, through the machine's fastest product."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (tokens, in_features), weight (out_features, in_features), bias (out_features,) → (tokens, out_features).

    float32 on a CPU with AVX-512 goes through oneDNN, which uses it on every make of CPU; torch's own product there is
    MKL's, which on some makes is half as fast. Elsewhere it is F.linear, and so it is for other dtypes and while
    torch.compile traces. torch.backends.mkldnn.flags(enabled=False) turns oneDNN off.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling() and onednn_serves():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return F.linear(x, weight, bias)


def onednn_serves() -> bool:
    """Whether float32 products on the CPU go through oneDNN."""
    return torch._C._get_mkldnn_enabled() and _has_product()


@cache
def _has_product() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:  # an operator that torch.compile itself uses, but that no release promises
        product = _product(torch.ones(2, 3), torch.ones(4, 3).t().contiguous().t(), None)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product, torch.full((2, 4), 3.0))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b; the weight may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t(), None) if of_x else None,
            _product(grad.t(), x.t(), None) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
