"""Dropout (Srivastava et al. 2014): each number is set to 0 with a probability, and the others grow in exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 1 << 16  # a number is dropped where 16 random bits lie below `probability` of their range


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """x · keep / (1 − p), keep being 1 with probability 1 − p; x itself outside training, and where p is 0.

    On the CPU p is `probability` to the nearest 1 / 65536, and the scale is that p's own, so that the mean stays x. It
    draws its seed from torch's generator, takes a fraction of F.dropout's time there, and keeps one byte a number for
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
        keep = _random_bits(x.numel()).ge_(dropped - STEPS // 2).to(torch.int8).view(x.shape)
        ctx.scale = STEPS / (STEPS - dropped)
        ctx.save_for_backward(keep)
        return keep.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grads[0].dtype).mul_(grads[0]).mul_(ctx.scale), None


def _random_bits(count: int) -> Tensor:
    """(count,) int16, each value as probable as another; from numpy's fastest generator, with torch's next number."""
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # of 64 bits
    return torch.from_numpy(words.view(np.int16))[:count]
