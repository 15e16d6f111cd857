"""Dropout (Srivastava et al. 2014): numbers are set to 0 at random, and the others are scaled up to keep the mean."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 1 << 16  # a number is dropped if its 16 random bits, as an integer, are below probability · STEPS


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Return x · keep / (1 − p), where keep is 1 with probability 1 − p, else 0; x itself if not `training` or p = 0.

    On the CPU this is faster than F.dropout, and saves one byte per number for the backward pass. There p is
    `probability` rounded to a multiple of 1 / 65536, in the scale too, so that the mean stays x; the seed comes from
    torch's generator. Other devices use F.dropout.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu" or probability >= 1 or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    return _Dropout.apply(x, min(round(probability * STEPS), STEPS - 1))  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    """Dropout with probability dropped / STEPS."""

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
    """Return uniform random int16 (count,) from NumPy's fastest generator, seeded by torch's next random number."""
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # of 64 bits
    return torch.from_numpy(words.view(np.int16))[:count]
