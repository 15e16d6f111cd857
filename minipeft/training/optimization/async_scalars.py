"""Deferred reads of a step's loss and gradient norm: reading them at once would make the host wait for the device."""

import torch
from torch import Tensor

DEFERRED_READS = ("cuda",)  # devices that compute asynchronously: a step's scalars are read during the next step


class HostCopy:
    """A copy of a tensor on the host that does not stop the device: `read` waits for it, and for nothing after it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.to("cpu", non_blocking=x.is_cuda)
        self.copied = torch.cuda.Event() if x.is_cuda else None
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(x.device))  # of x's GPU, which may not be the current one

    def read(self) -> Tensor:
        """Return the copy as soon as it is complete."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.x


class StepScalars:
    """The loss and the gradient norm of a step, copied to the host asynchronously.

    Args:
        step: the step's number, from 1.
        learning_rate: the step's learning rate.
        weight: the sum of the weights of the step's examples in the loss.
        loss: (), the mean loss of the step's examples, on the device.
        norm: (), the gradient norm before clipping, on the device.
    """

    def __init__(self, step: int, learning_rate: float, weight: float, loss: Tensor, norm: Tensor) -> None:
        self.step, self.learning_rate, self.weight = step, learning_rate, weight
        self.scalars = HostCopy(torch.stack([loss.detach(), norm.detach()]))  # (2,): one copy for both

    def read(self) -> tuple[float, float]:
        """Return loss and norm; waits for this step, but not for work that was queued on the device after it."""
        loss, norm = self.scalars.read().tolist()
        return loss, norm
