"""Activation checkpointing: the same training to the bit, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ragged, reference_model
from torch import Tensor

from minipeft import BitFit, Full, Head, LoRA, PrefixTuning, SequenceClassifier, apply, load_pretrained, pack
from minipeft.model.pretrained import cast_frozen

METHODS = [Full(), BitFit(), LoRA(rank=2, dropout=0.1), PrefixTuning(3), Head()]
LENGTHS = (7, 1, 40, 3, 129, 300, 2, 64)


def model_for(method: Any, folder: Path, dropout: float, dtype: torch.dtype) -> SequenceClassifier:
    reference_model(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).save_pretrained(folder)
    torch.manual_seed(0)
    return cast_frozen(apply(load_pretrained(folder), method), dtype).train()


def steps(model: SequenceClassifier) -> tuple[list[Tensor], list[int], Tensor]:
    """Two steps' losses and gradients, the bytes that each keeps for its way back, and the generator's last state."""
    tensors, kept = [], []
    torch.manual_seed(1)
    for seed in (0, 1):
        batch = pack(ragged(LENGTHS, seed=seed), [0, 1] * 4, config=model.config)
        assert batch.labels is not None
        storages: dict[int, int] = {}
        seen = []  # so that no two tensors that are kept share an address

        def keep(tensor: Tensor, storages: dict[int, int] = storages, seen: list[Tensor] = seen) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                seen.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = F.cross_entropy(model(batch), batch.labels, reduction="sum")
        kept.append(sum(storages.values()))
        loss.backward()
        tensors += [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        model.zero_grad()
    return tensors, kept, torch.random.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_losses_gradients_and_the_generator_are_the_same_to_the_bit(
    method: Any, dropout: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = model_for(method, tmp_path, dropout, dtype)
    tensors, _, state = steps(model)
    model.encoder.activation_checkpointing = True
    again, _, state_again = steps(model)
    assert len(tensors) == len(again) > 2
    assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))
    assert torch.equal(state, state_again)


def test_a_layer_keeps_its_input_alone(tmp_path: Path) -> None:
    """Of three layers, all that is kept is three inputs, the batch's own indices, and what the head needs."""
    model = model_for(LoRA(), tmp_path, 0.1, torch.float32)
    _, without, _ = steps(model)
    model.encoder.activation_checkpointing = True
    _, kept, _ = steps(model)
    inputs = 3 * sum(LENGTHS) * model.config.hidden_size * 4
    assert max(kept) < 1.5 * inputs and min(without) > 4 * inputs


@torch.inference_mode()
def test_evaluation_computes_each_layer_once(tmp_path: Path) -> None:
    model = model_for(LoRA(), tmp_path, 0.1, torch.float32).eval()
    calls: list[int] = []
    model.encoder.layers[1].register_forward_hook(lambda *_: calls.append(1))
    model.encoder.activation_checkpointing = True
    model(pack(ragged(LENGTHS), config=model.config))
    assert calls == [1]
