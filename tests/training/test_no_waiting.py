"""A step's forward and backward pass never ask the device for a number, for which the host would have to wait.

The meta device has shapes and no numbers: what asks it for one raises. It takes the groups that the CPU takes, or, as
CUDA would, the variable-length kernels: flash attention in 16 bits, the memory-efficient one in 32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ragged, reference_model
from torch.nn.utils import clip_grad_norm_
from varlen_operators import plan_as_on_cuda

from minipeft import IA3, BitFit, Full, Head, LoRA, PrefixTuning, PromptTuning, VeRA, apply, load_pretrained, pack
from minipeft.model import roberta
from minipeft.model.pretrained import cast_frozen

METHODS = [Full(), Head(), BitFit(), LoRA(dropout=0.1), IA3(), VeRA(rank=8), PromptTuning(3), PrefixTuning(3)]


def take_cudas_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA device would choose; the kernels' own functions of shapes, back and forth, remain."""
    monkeypatch.setattr(roberta, "plan_attention", plan_as_on_cuda)


@pytest.mark.parametrize("cuda", [False, True], ids=["groups", "varlen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_step_asks_the_device_for_nothing(
    method: Any, checkpointing: bool, dtype: torch.dtype, cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cuda:
        take_cudas_kernels(monkeypatch)
    reference_model().save_pretrained(tmp_path)
    model = cast_frozen(apply(load_pretrained(tmp_path), method), dtype).to("meta").train()
    model.encoder.activation_checkpointing = checkpointing
    batch = pack(ragged((7, 1, 40, 3, 300, 290)), [0, 1, 0, 1, 0, 1], config=model.config).to("meta")
    assert batch.labels is not None
    loss = F.cross_entropy(model(batch), batch.labels, reduction="sum")
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    clip_grad_norm_(trained, 1.0)
    assert all(parameter.grad is not None for parameter in trained)
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()
