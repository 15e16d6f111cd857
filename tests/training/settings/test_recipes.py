"""The defaults that the project promises, and one for every task and method."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.data.tasks.task import TASKS
from minipeft.methods import METHODS
from minipeft.model.families import FAMILIES
from minipeft.training.settings.recipes import FULL_LR, SMALL_HIDDEN_SIZE, Recipe, default_warmup, recipe
from minipeft.training.settings.train_settings import TrainSettings


@pytest.mark.parametrize("hidden_size", [SMALL_HIDDEN_SIZE, 768])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_method_has_a_recipe(task: str, method: str, hidden_size: int) -> None:
    values = recipe(task, method, hidden_size)
    assert values.epochs >= 1 and 0 < values.lr < 0.1
    for name in ("epochs", "lr", "warmup_steps"):
        assert getattr(TrainSettings(), name) is None  # so that the recipe decides


def test_lora_on_roberta_base_has_the_report_s_settings() -> None:
    """What the report that the project starts from used on RTE."""
    settings = TrainSettings()
    assert recipe("rte", "lora", 768) == Recipe(25, 5e-4)
    assert recipe("sst2", "lora", 768).epochs == 5
    assert default_warmup(25 * -(-2490 // 64)) == default_warmup(5 * -(-67349 // 64)) == 100
    assert (settings.batch_size, settings.grad_accum, settings.weight_decay) == (16, 4, 0.01)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_a_method_that_trains_more_takes_smaller_steps(task: str, model_type: str) -> None:
    for hidden_size in (128, 768, 1024):
        assert recipe(task, "full", hidden_size, model_type).lr < recipe(task, "lora", hidden_size, model_type).lr


def test_a_larger_encoder_takes_smaller_steps() -> None:
    assert set(FULL_LR) <= set(FAMILIES)
    for model_type, rates in FULL_LR.items():
        found = [recipe("rte", "full", hidden_size, model_type).lr for hidden_size in (256, 384, 768, 1024)]
        assert found == sorted(found, reverse=True) and set(found) == {rate for _, rate in rates}
    for depth, decay, head, mean in ((12, 0.8, 3e-4, 9e-5), (12, 0.8, 1e-4, 3e-5), (24, 0.9, 5e-5, 1.7e-5)):  # ELECTRA
        assert sum(head * decay ** (layer + 1) for layer in range(depth)) / depth == pytest.approx(mean, rel=0.05)
        assert mean in {rate for _, rate in FULL_LR["electra"]}


@given(st.integers(0, 10_000))
def test_the_default_warmup_is_a_small_part_of_every_run(steps: int) -> None:
    assert default_warmup(steps) <= steps / 9 and default_warmup(steps) <= 100
    assert default_warmup(steps) <= default_warmup(steps + 1)
