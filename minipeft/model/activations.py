"""The activations of a feed-forward network, by Hugging Face's names (config.json: hidden_act)."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

# x Φ(x), Φ the normal distribution (Hendrycks and Gimpel 2016), and its approximation by tanh.
_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
}
