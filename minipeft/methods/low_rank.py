"""The matrices A and B of all layers, cast together for each forward pass.

A and B are trained in float32 and used in the encoder's dtype, B times the scaling. In 12 layers with two targets, that
would be about 200 small operations of a training step, forward and backward. A GPU computes each of them faster than
Python asks for it. Stacked, they are 12.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# A (rank, in_features) and s · Bᵀ (rank, out_features) of a layer, in the dtype of its input.
Factors = tuple[Tensor, Tensor]


def cast_factors(layers: Sequence[Any], dtype: torch.dtype) -> list[Factors]:
    """Return the factors of LoRALinear or AdaLoRALinear layers that have one shape and one scaling."""
    a = layers[0].stack_a(layers).to(dtype)  # (layers, rank, in_features)
    b = torch.stack([layer.lora_B for layer in layers]) * layers[0].scaling  # (layers, out_features, rank)
    b = _Transpose.apply(b).to(dtype)  # type: ignore[no-untyped-call]
    return list(zip(a.unbind(), b.unbind(), strict=True))


class _Transpose(torch.autograd.Function):
    """The transpose of each matrix, in contiguous memory, and so is its gradient.

    Over a view of B, the product for the gradient of B would be the slowest of the layer on the CPU. A gradient that is
    a view would be copied again for each parameter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].transpose(1, 2).contiguous()


class SharedCasts:
    """Casts the factors of layers together, for the time of a forward pass."""

    def __init__(self, layers: Sequence[Any]) -> None:
        groups: dict[Any, list[Any]] = {}
        for layer in layers:
            groups.setdefault((layer.lora_A.shape, layer.lora_B.shape, layer.scaling), []).append(layer)
        self.groups = list(groups.values())

    @contextmanager
    def cast(self, dtype: torch.dtype) -> Iterator[None]:
        """Give each layer its factors while the block runs; a merged layer needs none."""
        for group in self.groups:
            layers = [layer for layer in group if layer.unmerged is None]
            for layer, factors in zip(layers, cast_factors(layers, dtype) if layers else (), strict=True):
                layer.shared_factors = factors
        try:
            yield
        finally:
            for group in self.groups:
                for layer in group:
                    layer.shared_factors = None
