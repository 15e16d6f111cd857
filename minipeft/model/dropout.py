"""Dropout (Srivastava et al. 2014): each number is set to 0 with a probability, and the others grow in exchange."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 1 << 16  # a number is dropped where 16 random bits lie below `probability` of their range


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """x · keep / (1 − p), keep being 1 with probability 1 − p; x itself outside training, and where p is 0.

    On the CPU p is `probability` to the nearest 1 / 65536, and the scale is that p's own, so that the mean stays x. It
    draws from torch's generator, in less than half of F.dropout's time there, and keeps one byte a number for
    the backward pass. Elsewhere it is F.dropout.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu" or probability >= 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    return _Dropout.apply(x, min(round(probability * STEPS), STEPS - 1))  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    """dropped: how many of the STEPS values of 16 bits drop a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
        keep = bits[: x.numel()].ge_(dropped - STEPS // 2).to(torch.int8).view(x.shape)
        ctx.scale = STEPS / (STEPS - dropped)
        ctx.save_for_backward(keep)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (grads[0] * keep).mul_(ctx.scale), None
