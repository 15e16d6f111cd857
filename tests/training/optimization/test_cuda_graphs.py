"""Recorded batches against the plain loop. Here what is recorded is computed again on the same tensors, as a CUDA graph
would: what a batch brings only from the host would stay the first batch's, and show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, reference_model
from small_runs import PER_STEP, encoded, last_step, small_run
from small_runs import run_loop as run
from varlen_operators import plan_as_on_cuda

from minipeft import (
    IA3,
    AdaLoRA,
    BitFit,
    DoRA,
    Full,
    LayerNormTuning,
    LoRA,
    MinipeftError,
    PrefixTuning,
    PromptTuning,
    VeRA,
    apply,
    load_pretrained,
)
from minipeft.cuda import check_deterministic
from minipeft.data.batches.sampling import pack_examples
from minipeft.device import choose_device
from minipeft.model import roberta
from minipeft.model.families import get_family
from minipeft.training import loop
from minipeft.training.optimization import cuda_graphs as graphs
from minipeft.training.optimization.cuda_graphs import StepGraphs, check_cuda_graphs, choose_cuda_graphs
from minipeft.training.settings.train_settings import TrainSettings

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METHODS = [
    Full(),
    BitFit(),
    LoRA(rank=2),
    DoRA(rank=2),
    IA3(),
    LayerNormTuning(),
    VeRA(rank=6),
    PromptTuning(3),
    PrefixTuning(3),
    AdaLoRA(init_rank=3, target_rank=2, tinit=1, tfinal=1),
]


def compute_again(compute: Callable[[], None], trained: Any) -> Callable[[], None]:
    return compute


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roberta, "plan_attention", plan_as_on_cuda)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("most", [pytest.param(0, marks=pytest.mark.full), 2, pytest.param(64, marks=pytest.mark.full)])
def test_training_is_the_same(method: Any, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", most)
    reference_model(**NO_DROPOUT).save_pretrained(tmp_path / "checkpoint")
    train, validation = encoded(20), encoded(6, seed=1)
    results = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model = apply(load_pretrained(tmp_path / "checkpoint"), method)
        step_graphs = StepGraphs(model, compute_again) if recorded else None
        done = run(model, train, validation, tmp_path / f"run-{recorded}", graphs=step_graphs)
        results.append((done.history, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}))
    assert step_graphs is not None and len(step_graphs.recorded) <= most
    (history, trained), (other_history, other_trained) = results
    for row, other in zip(history, other_history, strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], abs=1e-5)
        assert other["eval_loss"] == pytest.approx(row["eval_loss"], abs=1e-4)
    for name, tensor in trained.items():
        if not name.endswith("key.bias"):  # its gradient is rounding noise, which AdamW scales up
            torch.testing.assert_close(other_trained[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_graph_holds_for_other_batches_of_its_size(method: Any, tmp_path: Path) -> None:
    reference_model(**NO_DROPOUT).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = apply(load_pretrained(tmp_path), method).train()
    step_graphs = StepGraphs(model, compute_again)
    parameters = step_graphs.trained
    places = [parameter.grad for parameter in parameters]
    for seed in range(4):  # other lengths, other tokens, and another number of sequences
        train = encoded(9 + seed, seed=5 * seed)
        batch = pack_examples(train, list(range(len(train))), model.config)
        assert batch.labels is not None
        (F.cross_entropy(model(batch), batch.labels, reduction="sum") / 20).backward()
        expected = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        model.zero_grad(set_to_none=False)
        loss = step_graphs.add_gradients(batch, 20)
        assert largest(loss, F.cross_entropy(model(batch), batch.labels, reduction="sum").detach() / 20) < 1e-5
        for parameter, there, gradient in zip(parameters, places, expected, strict=True):
            assert parameter.grad is there and largest(parameter.grad, gradient) < 1e-4
        model.zero_grad(set_to_none=False)
    assert len(step_graphs.recorded) == 1


def test_groups_planned_on_the_host_would_not_hold(tmp_path: Path) -> None:
    """So the tests here see what a graph keeps of its first batch."""
    reference_model(**NO_DROPOUT).save_pretrained(tmp_path)
    model = apply(load_pretrained(tmp_path), LoRA()).train()
    step_graphs = StepGraphs(model, compute_again)
    one, other = (pack_examples(encoded(9, seed=seed), list(range(9)), model.config) for seed in (0, 5))
    assert other.labels is not None
    with torch.no_grad():
        expected = F.cross_entropy(model(other), other.labels, reduction="sum")
    step_graphs.add_gradients(one, 1)
    stale = step_graphs.add_gradients(other, 1)
    assert len(step_graphs.recorded) == 1 and largest(stale, expected) > 1e-3


@pytest.mark.usefixtures("as_on_cuda")
def test_dropout_is_drawn_anew_from_the_steps_seed(tmp_path: Path) -> None:
    reference_model().save_pretrained(tmp_path)
    model = apply(load_pretrained(tmp_path), LoRA(dropout=0.1)).train()
    step_graphs, train = StepGraphs(model, compute_again), encoded(9)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(step_graphs.add_gradients(pack_examples(train, list(range(9)), model.config), 9)))
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("minutes", [5.0, 0.0], ids=["an epoch", "a step"])
@pytest.mark.parametrize("per_step", [PER_STEP, 10], ids=["within an epoch", "at its end"])
def test_a_loss_read_late_stops_the_run_with_its_own_step_and_nothing_saved_after_it(
    minutes: float, per_step: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, saved = [], []
    for late in ((), ("cpu",)):
        monkeypatch.setattr(loop, "DEFERRED_READS", late)
        model = apply(load_pretrained(checkpoint), Full())
        folder = tmp_path / f"run-{late}"
        with pytest.raises(MinipeftError) as caught:
            settings = {"lr": 1e36, "warmup_steps": 0, "checkpoint_minutes": minutes, "sequences_per_step": per_step}
            run(model, encoded(20), encoded(6, seed=1), folder, **settings)
        errors.append(str(caught.value).replace(str(folder), ""))
        assert not (folder / "adapter").exists() and not (folder / "metrics.jsonl").exists()
        saved.append(last_step(folder))
    assert errors[0] == errors[1] and errors[0].startswith("step 2: the loss is")
    assert saved[0] == saved[1] == (0 if minutes == 0 else -1)


def test_late_reading_changes_no_figure(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = []
    for late in ((), ("cpu",)):
        monkeypatch.setattr(loop, "DEFERRED_READS", late)
        torch.manual_seed(0)
        model = apply(load_pretrained(checkpoint), LoRA())
        done = run(model, encoded(20), encoded(6, seed=1), tmp_path / f"run-{late}")
        histories.append(
            [{name: row[name] for name in ("step", "train_loss", "eval_loss", "accuracy")} for row in done.history]
        )
    assert histories[0] == histories[1]


def test_graphs_are_refused_where_there_are_none(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match="--cuda-graphs on: the device is cpu, not a CUDA device"):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", cuda_graphs="on")
    assert not (tmp_path / "run").exists()
    with pytest.raises(MinipeftError, match=r"--cuda-graphs on with --activation-checkpointing: .* --cuda-graphs off"):
        check_cuda_graphs("cuda", activation_checkpointing=True)
    check_cuda_graphs("cuda", activation_checkpointing=False)


NO_WINDOWS = "no variable-length attention in windows in fp32"


@pytest.mark.parametrize(
    "family, shape, precision, problem",
    [
        ("roberta", {}, "bf16", ""),
        ("roberta", {}, "fp32", ""),
        ("roberta", {"hidden_size": 36}, "bf16", "for heads of size 12"),
        ("modernbert", {}, "bf16", ""),
        ("modernbert", {}, "fp32", NO_WINDOWS),
        ("deberta-v2", {}, "bf16", "the host plans the attention"),
        ("deberta-v2", {}, "fp32", "the host plans the attention"),
    ],
)
def test_graphs_are_chosen_where_the_attention_is_planned_on_the_device(
    family: str, shape: dict[str, int], precision: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "varlen_agrees", lambda *_: True)
    config = get_family(family).config(**{"hidden_size": 48, "num_attention_heads": 3, **shape})
    assert choose_cuda_graphs(TrainSettings(cuda_graphs="auto"), "cpu", precision, config) == "off"
    chosen = choose_cuda_graphs(TrainSettings(cuda_graphs="auto"), "cuda", precision, config)
    assert chosen == ("off" if problem else "on")
    if problem:
        with pytest.raises(MinipeftError, match=problem):
            choose_cuda_graphs(TrainSettings(cuda_graphs="on"), "cuda", precision, config)
    monkeypatch.setattr(graphs, "varlen_agrees", lambda *_: False)  # as on a GPU without the kernels
    assert choose_cuda_graphs(TrainSettings(cuda_graphs="auto"), "cuda:1", precision, config) == "off"


def test_deterministic_algorithms_need_cublas_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    check_deterministic()
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_device("cpu") == "cpu"
        with pytest.raises(MinipeftError, match="Set CUBLAS_WORKSPACE_CONFIG=:4096:8"):
            check_deterministic()
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        check_deterministic()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("method", [Full(), LoRA(rank=2), METHODS[-1], PromptTuning(3)], ids=lambda m: type(m).__name__)
def test_deterministic_algorithms_train(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        run(apply(load_pretrained(checkpoint), method), encoded(20), encoded(6, seed=1), tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
