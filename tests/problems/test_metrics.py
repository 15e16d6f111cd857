"""Metrics against scikit-learn and scipy; the loss; evaluating in any order."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, ragged
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    precision_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)

from minipeft import MinipeftError, load_pretrained, load_tokenizer
from minipeft.data.tasks.task import TASKS, Split, get_task
from minipeft.data.tokens.examples import Encoded, encode_split
from minipeft.data.tokens.holdout import hold_out
from minipeft.data.tokens.token_table import TokenTable
from minipeft.problems import PROBLEMS, problem_class
from minipeft.problems.class_metrics import f1, macro_f1, matthews_correlation
from minipeft.problems.metrics import METRICS, accuracy
from minipeft.problems.multi_label import MultiLabel
from minipeft.problems.numeric_metrics import pearson, spearman
from minipeft.problems.problem import Problem
from minipeft.problems.regression import Regression
from minipeft.problems.single_label import SingleLabel
from minipeft.training.evaluate import predict_logits
from minipeft.training.progress import best_epoch


def two_columns(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    return st.integers(1, 40).flatmap(
        lambda size: st.tuples(*(st.lists(values, min_size=size, max_size=size).map(np.array) for _ in range(2)))
    )


# Few values, so that there are ties; quarters, so that sums are exact and a constant column is one.
QUARTERS = st.integers(-8, 8).map(lambda number: number / 4)


@given(two_columns(st.integers(0, 1)))
def test_binary_metrics_are_scikit_learn_s(columns: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = columns
    assert accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    assert f1(predictions, labels) == pytest.approx(
        f1_score(labels, predictions, labels=[0, 1], zero_division=0.0), abs=1e-12
    )
    expected = matthews_corrcoef(labels, predictions) if len(set(labels) | set(predictions)) > 1 else 0.0
    assert matthews_correlation(predictions, labels) == pytest.approx(expected, abs=1e-12)


@given(two_columns(st.integers(0, 2)))
def test_accuracy_of_three_classes_is_scikit_learn_s(columns: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = columns
    assert accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)


@given(two_columns(st.integers(0, 4)))
def test_macro_f1_is_scikit_learn_s(columns: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = columns
    expected = f1_score(labels, predictions, average="macro", zero_division=0.0)
    assert macro_f1(predictions, labels) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(0, 1))
def test_constant_predictions_are_scored_as_scikit_learn_does(labels: list[int], guess: int) -> None:
    """What a model does that has learned nothing, also where the labels are of one class."""
    expected, constant = np.array(labels), np.full(len(labels), guess)
    assert accuracy(constant, expected) == pytest.approx(accuracy_score(expected, constant), abs=1e-12)
    assert f1(constant, expected) == pytest.approx(
        f1_score(expected, constant, labels=[0, 1], zero_division=0.0), abs=1e-12
    )
    assert macro_f1(constant, expected) == pytest.approx(
        f1_score(expected, constant, average="macro", zero_division=0.0), abs=1e-12
    )
    assert matthews_correlation(constant, expected) == pearson(constant, expected) == spearman(constant, expected) == 0


@given(two_columns(QUARTERS))
def test_correlations_are_scipy_s_and_0_for_a_constant_column(columns: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = columns
    if min(len(np.unique(predictions)), len(np.unique(labels))) < 2:
        assert pearson(predictions, labels) == spearman(predictions, labels) == 0.0
        return
    assert pearson(predictions, labels) == pytest.approx(pearsonr(predictions, labels).statistic, abs=1e-12)
    assert spearman(predictions, labels) == pytest.approx(spearmanr(predictions, labels).statistic, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 200))
def test_correlations_of_random_float32_columns_are_scipy_s(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.normal(size=size).astype(np.float32)
    predictions = (0.5 * labels + random.normal(size=size)).astype(np.float32)
    wide = predictions.astype(np.float64), labels.astype(np.float64)
    assert pearson(predictions, labels) == pytest.approx(pearsonr(*wide).statistic, abs=1e-12)
    assert spearman(predictions, labels) == pytest.approx(np.corrcoef(*map(rankdata, wide))[0, 1], abs=1e-12)


@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.integers(1, 30))
def test_two_constant_columns_do_not_correlate(one: float, other: float, size: int) -> None:
    """Whatever rounding leaves of value - mean."""
    columns = np.full(size, one, dtype=np.float32), np.full(size, other, dtype=np.float32)
    assert pearson(*columns) == spearman(*columns) == 0.0


@given(two_columns(st.integers(0, 3)))
def test_metrics_of_several_classes_are_scikit_learn_s(columns: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = columns
    problem = SingleLabel(("a", "b", "c", "d"))
    logits = torch.nn.functional.one_hot(torch.from_numpy(predictions), 4).float()
    names = [f"{metric}:{label}" for metric in ("f1", "precision", "recall") for label in problem.labels]
    values = problem.score(logits, labels.tolist(), ["matthews_correlation", "balanced_accuracy", *names])
    expected = matthews_corrcoef(labels, predictions) if len(set(labels) | set(predictions)) > 1 else 0.0
    assert values["matthews_correlation"] == pytest.approx(expected, abs=1e-12)
    with warnings.catch_warnings(action="ignore"):  # of classes that occur in the predictions only
        assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-12)
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        theirs = score(labels, predictions, labels=range(4), average=None, zero_division=0.0)
        assert [values[f"{name}:{label}"] for label in problem.labels] == pytest.approx(theirs.tolist(), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
@given(st.integers(0, 2**16), st.integers(0, 60))
def test_auroc_is_scikit_learn_s(classes: int, seed: int, more: int) -> None:
    """Two classes, several (one against the rest), and several labels per example; with ties."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.integers(-2, 3, (classes + more, classes)).astype(np.float32))
    labels = [*range(classes), *random.integers(0, classes, more).tolist()]  # each class occurs
    single = SingleLabel(tuple("abcd"[:classes]))
    probabilities = single.probabilities(logits)
    scores = probabilities[:, 1] if classes == 2 else probabilities
    expected = roc_auc_score(labels, scores, multi_class="ovr")
    assert single.score(logits, labels, ["auroc"])["auroc"] == pytest.approx(expected, abs=1e-12)
    several = MultiLabel(single.labels)
    sets = [(label,) for label in labels]
    hot = np.eye(classes)[labels]
    expected = roc_auc_score(hot, several.probabilities(logits))
    assert several.score(logits, sets, ["auroc"])["auroc"] == pytest.approx(expected, abs=1e-12)
    recalls = recall_score(hot, several.probabilities(logits) >= 0.5, average=None, zero_division=0.0)
    names = [f"recall:{label}" for label in several.labels]
    assert list(several.score(logits, sets, names).values())[1:] == pytest.approx(recalls.tolist(), abs=1e-12)


def test_the_page_of_options_names_every_metric() -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    assert [name for name, row in METRICS.items() if f"`{name}{'CLASS' * row.of_class}`" not in page] == []


def test_auroc_without_two_sides_is_a_half() -> None:
    assert SingleLabel(("a", "b")).score(torch.zeros(3, 2), [1, 1, 1], ["auroc"])["auroc"] == 0.5


@given(two_columns(QUARTERS))
def test_errors_of_numbers_are_scikit_learn_s(columns: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, labels = columns
    logits = torch.from_numpy(predictions).float()[:, None]
    values = Regression().score(logits, labels.tolist(), ["mae", "rmse"])
    assert values["mae"] == pytest.approx(mean_absolute_error(labels, predictions), abs=1e-12)
    assert values["rmse"] == pytest.approx(root_mean_squared_error(labels, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("problem", "name", "message"),
    [
        (SingleLabel(("a", "b", "c")), "f1", "f1 is for two classes. Choose macro_f1"),
        (
            SingleLabel(("spam", "ham")),
            "recall:span",
            r"unknown class .*'span'; one of spam, ham \(did you mean spam\?\)",
        ),
        (SingleLabel(("a", "b")), "auroc:a", "unknown --select-by 'auroc:a'; one of eval_loss, .*recall:CLASS"),
        (SingleLabel(("a", "b")), "mae", "unknown --select-by 'mae'"),
        (Regression(), "accuracy", r"unknown --select-by 'accuracy'; one of eval_loss, pearson, spearman, mae, rmse\b"),
    ],
    ids=str,
)
def test_a_metric_that_does_not_fit_is_refused(problem: Problem, name: str, message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        problem.check_metric(name)


@pytest.mark.parametrize("select_by", ["rmse", "holdout_mae", "eval_loss", "holdout_eval_loss"])
def test_the_smallest_error_is_the_best(select_by: str) -> None:
    history = [{"epoch": epoch, select_by: value} for epoch, value in enumerate((0.5, 0.25, 0.25, 1.0))]
    assert best_epoch(history, select_by)["epoch"] == 1
    for larger in ("recall:mae", "holdout_f1:eval_loss", "auroc"):
        assert best_epoch([{"epoch": row["epoch"], larger: row[select_by]} for row in history], larger)["epoch"] == 3


def test_every_task_and_every_kind_of_label_has_metrics_that_fit_it() -> None:
    offered = [(task.problem_type, task.metrics) for task in TASKS.values()]
    offered += [(name, problem_class(name)(("a", "b")).metrics) for name in PROBLEMS]
    for problem_type, metrics in offered:
        assert metrics and all(problem_type in METRICS[name].problems for name in metrics)
    assert {name for metric in METRICS.values() for name in metric.problems} == set(PROBLEMS)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_is_the_sum_of_the_cross_entropies(classes: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, classes, requires_grad=True), torch.randint(classes, (7,))
    loss = SingleLabel().losses(logits, labels).sum()
    expected = -logits.log_softmax(1)[range(7), labels].sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


def test_the_loss_of_regression_is_the_sum_of_the_squared_errors() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 1), torch.rand(7)
    torch.testing.assert_close(Regression().losses(logits, labels), (logits[:, 0] - labels) ** 2)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.sampled_from([1, 37, 100, 10_000]))
def test_evaluation_does_not_depend_on_the_batches(tiny_checkpoint: Path, lengths: list[int], max_tokens: int) -> None:
    model = load_pretrained(tiny_checkpoint).train()
    labels = [length % 2 for length in lengths]
    sequences = ragged(lengths, 500)
    task = get_task("cola")
    examples = Encoded(Split(task, [""] * len(labels), None, labels), TokenTable.from_sequences(sequences))
    logits = predict_logits(model, examples, max_tokens)
    assert model.training  # as it was
    for sequence, row in zip(sequences, logits, strict=True):
        one = Encoded(Split(task, [""], None, [0]), TokenTable.from_sequences([sequence]))
        torch.testing.assert_close(predict_logits(model, one, 1)[0], row, atol=1e-6, rtol=1e-5)
    values = task.problem.score(logits, labels, task.metrics)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
    assert values["eval_loss"] == pytest.approx(expected, abs=1e-6)
    assert list(values) == ["eval_loss", "matthews_correlation", "accuracy"]
    assert values["accuracy"] == np.mean(logits.argmax(1).numpy() == labels)


def test_a_token_beyond_the_vocabulary_is_refused_with_its_row(tiny_checkpoint: Path) -> None:
    from dataclasses import replace

    config = load_pretrained(tiny_checkpoint).config
    tokenizer = load_tokenizer(tiny_checkpoint)
    split = Split(get_task("sst2"), ["", "the dog was in the garden"], None, [0, 1])
    assert len(encode_split(split.task, [split], tokenizer, 128, config)) == 2
    with pytest.raises(MinipeftError, match="gives a text the token id"):
        encode_split(split.task, [split], tokenizer, 128, replace(config, vocab_size=5))


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_holdout_divides_the_examples_and_loses_none(count: int, part: float, seed: int) -> None:
    sequences = TokenTable.from_sequences([[number] for number in range(count)])
    examples = Encoded(Split(get_task("sst2"), [], None, [n % 2 for n in range(count)]), sequences)
    if count < 3 or not 0 < round(count * part) < count:  # two examples are of two classes
        with pytest.raises(MinipeftError, match="--holdout"):
            hold_out(examples, part, seed)
        return
    trained, held = hold_out(examples, part, seed)
    assert abs(len(held) - round(count * part)) <= 1 and len(trained) + len(held) == count  # a row of each class
    both = sorted(sequence[0] for half in (trained, held) for sequence in half.sequences)
    assert both == list(range(count))
    for half in (trained, held):
        numbers = [sequence[0] for sequence in half.sequences]
        assert numbers == sorted(numbers) and list(half.split.labels) == [number % 2 for number in numbers]
    assert [s[0] for s in hold_out(examples, part, seed)[1].sequences] == [s[0] for s in held.sequences]
