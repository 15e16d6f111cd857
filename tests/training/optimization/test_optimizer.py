"""The learning rate's schedule against transformers; which parameters decay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup

from minipeft import BitFit, EncoderConfig, Full, LoRA, SequenceClassifier, apply
from minipeft.training.optimization.optimizer import adamw, parameter_groups
from minipeft.training.optimization.schedule import linear_schedule


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 40))
def test_the_schedule_is_transformers_s(warmup_steps: int, total_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)
    for step in range(total_steps + 3):
        assert linear_schedule(step, warmup_steps, total_steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("method", [Full(), BitFit(), LoRA(rank=2)])
def test_matrices_decay_and_biases_and_layer_norm_do_not(method: object) -> None:
    config = EncoderConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=20,
    )
    model = apply(SequenceClassifier(config), method)
    groups = parameter_groups(model, 0.1)
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(decay) == sum(len(group["params"]) for group in groups) == len(trained)
    for name, parameter in trained.items():
        none = name.endswith("bias") or "layer_norm" in name
        assert decay[id(parameter)] == (0.0 if none else 0.1), name


def test_a_step_of_adamw_decays_the_matrix_alone() -> None:
    layer = torch.nn.Linear(3, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = adamw(layer, weight_decay=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before["bias"])
