"""A step's loss and gradient norm, read when the device has computed them: to ask at once would leave it idle."""

from __future__ import annotations

import torch
from torch import Tensor

DEFERRED_READS = ("cuda",)  # devices that compute asynchronously: a step's scalars are read during the next step


class StepScalars:
    """What a step leaves to be read.

    step, learning_rate, sequences   its number, counted from 1, and what the host knows of it
    loss, norm                       scalars on the device, which go to the host behind the work it has so far
    """

    def __init__(self, step: int, learning_rate: float, weight: float, loss: Tensor, norm: Tensor) -> None:
        self.step, self.learning_rate, self.weight = step, learning_rate, weight
        together = torch.stack([loss.detach(), norm.detach()])
        self.loss_and_norm = together.to("cpu", non_blocking=together.is_cuda)
        self.there = torch.cuda.Event() if together.is_cuda else None
        if self.there is not None:
            self.there.record()

    def read(self) -> tuple[float, float]:
        """Loss and norm: waits for this step, and for nothing that the device was given after it."""
        if self.there is not None:
            self.there.synchronize()
        loss, norm = self.loss_and_norm.tolist()
        return loss, norm
