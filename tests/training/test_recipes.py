"""The defaults that the project promises, and one for every task and method."""

from __future__ import annotations

import pytest

from minipeft.data.tasks import TASKS
from minipeft.methods import METHODS
from minipeft.training.recipes import SMALL_HIDDEN_SIZE, TrainSettings, recipe


@pytest.mark.parametrize("hidden_size", [SMALL_HIDDEN_SIZE, 768])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_method_has_a_recipe(task: str, method: str, hidden_size: int) -> None:
    values = recipe(task, method, hidden_size)
    assert set(values) == {"epochs", "lr", "warmup_steps"}
    assert values["epochs"] >= 1 and 0 < values["lr"] < 0.1 and values["warmup_steps"] >= 0
    for name in values:
        assert getattr(TrainSettings(), name) is None  # so that the recipe decides


def test_lora_on_roberta_base_has_the_report_s_settings() -> None:
    """What the report that the project starts from used on RTE."""
    settings = TrainSettings()
    assert recipe("rte", "lora", 768) == {"epochs": 25, "lr": 5e-4, "warmup_steps": 100}
    assert recipe("sst2", "lora", 768)["epochs"] == 5
    assert (settings.batch_size, settings.grad_accum, settings.weight_decay) == (16, 4, 0.01)


@pytest.mark.parametrize("task", TASKS)
def test_a_method_that_trains_more_takes_smaller_steps(task: str) -> None:
    for hidden_size in (128, 768):
        assert recipe(task, "full", hidden_size)["lr"] < recipe(task, "lora", hidden_size)["lr"]
