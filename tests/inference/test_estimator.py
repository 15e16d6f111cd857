"""minipeft.Classifier: scikit-learn's tools take it, and it predicts what minipeft.train's run does."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import run_command
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

import minipeft
from minipeft import Classifier, MinipeftError, Regressor
from minipeft.inference.estimator import DEFAULTS, OF_FIT
from minipeft.training.settings.train_settings import TrainSettings

TEXTS = [f"{('a great film', 'an awful film', 'a film')[n % 3]}, number {n}" for n in range(48)]
LABELS = [("good", "bad", "neither")[n % 3] for n in range(48)]


@pytest.fixture(scope="module")
def new(tiny_checkpoint: Path) -> Callable[..., Classifier]:
    def make(**settings: Any) -> Classifier:
        small = {"method": "head", "epochs": 1, "batch_size": 8, "grad_accum": 1, "precision": "fp32", "device": "cpu"}
        return Classifier(model=str(tiny_checkpoint), **small | settings)

    return make


@pytest.fixture(scope="module")
def fitted(new: Callable[..., Classifier]) -> Classifier:
    return new(lr=1e-2, epochs=2).fit(TEXTS, LABELS)


def test_the_settings_are_those_of_train_but_for_the_data() -> None:
    names = {field.name: field.default for field in fields(TrainSettings)}
    parameters = inspect.signature(Classifier).parameters
    assert set(parameters) == set(names) - set(OF_FIT) == set(Classifier().get_params())
    assert {name: parameters[name].default for name in parameters} == {
        name: value for name, value in names.items() if name not in OF_FIT
    } | {"quiet": True}


def test_it_predicts_what_the_run_does(fitted: Classifier) -> None:
    proba = fitted.predict_proba(TEXTS)
    assert fitted.classes_.tolist() == ["bad", "good", "neither"] and proba.shape == (48, 3)
    assert np.abs(proba.sum(1) - 1).max() < 1e-12
    assert fitted.predict(TEXTS).tolist() == fitted.classes_[proba.argmax(1)].tolist()
    run = minipeft.load_run(fitted._folder, "cpu")
    assert [row["label"] for row in run.predict(TEXTS)] == fitted.predict(TEXTS).tolist()
    assert fitted.score(TEXTS, LABELS) == np.mean(fitted.predict(TEXTS) == np.array(LABELS))
    assert fitted.result_["task"] == "data"


@pytest.mark.parametrize("labels", [[2, 0, 10], [True, False, True], [-1.0, 1.0, 2.0]], ids=str)
def test_classes_have_the_type_and_order_that_scikit_learn_gives_them(
    labels: list[Any], new: Callable[..., Classifier]
) -> None:
    y = np.array([labels[n % 3] for n in range(48)])
    classifier = new().fit(np.array(TEXTS), y)
    assert classifier.classes_.tolist() == np.unique(y).tolist()
    assert classifier.predict(TEXTS).dtype == y.dtype
    names = classifier._predictor.task.labels
    for row, label in zip(classifier._predictor.predict(TEXTS), classifier.predict(TEXTS), strict=True):
        assert row["label"] == str(label) and row["label"] in names


def test_pairs_are_two_columns(new: Callable[..., Classifier]) -> None:
    pairs = [(text, f"pair {n}") for n, text in enumerate(TEXTS)]
    classifier = new().fit(pairs, LABELS)
    expected = classifier._predictor.predict_proba(*zip(*pairs, strict=True))
    for given in (pairs, np.array(pairs), pandas.DataFrame(pairs)):
        assert (classifier.predict_proba(given) == expected).all()


def test_a_column_of_a_data_frame_is_texts_and_a_table_of_labels_is_multi_label(
    new: Callable[..., Classifier], fitted: Classifier
) -> None:
    frame = pandas.DataFrame({"review": TEXTS[:40]})
    np.testing.assert_array_equal(fitted.predict(frame[["review"]]), fitted.predict(TEXTS[:40]))
    labels = pandas.DataFrame({"b": [n % 2 for n in range(40)], "a": [n % 3 == 0 for n in range(40)]}).astype(int)
    several = new().fit(frame[["review"]], labels)
    probabilities, predictor = several.predict_proba(TEXTS[:5]), several._load()
    assert several.classes_.tolist() == ["b", "a"] and predictor.labels == ("a", "b")
    np.testing.assert_allclose(probabilities[:, ::-1], predictor.predict_proba(TEXTS[:5]))
    np.testing.assert_array_equal(several.predict(TEXTS[:5]), probabilities >= 0.5)
    assert several.score(TEXTS[:40], labels) == accuracy_score(labels, several.predict(TEXTS[:40]))


def test_a_regressor_predicts_numbers(new: Callable[..., Classifier], caplog: pytest.LogCaptureFixture) -> None:
    numbers, weights = [n % 7 + 0.5 for n in range(40)], np.arange(40) + 1.0
    settings = new().get_params() | {"warmup_steps": 1000}  # gives a warning
    regressor = Regressor(**settings).fit(TEXTS[:40], numbers)
    assert not caplog.records and is_regressor(regressor) and "Regressor(" in repr(clone(regressor))
    predicted = regressor.predict(TEXTS[:40])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(regressor)).predict(TEXTS[:40]), predicted)
    expected = r2_score(numbers, predicted, sample_weight=weights)
    assert regressor.score(TEXTS[:40], numbers, weights) == pytest.approx(expected)
    with pytest.raises(MinipeftError, match="Give each a number"):
        Regressor(**settings).fit(TEXTS[:40], LABELS[:40])
    loud = Regressor(**settings | {"quiet": False}).fit(TEXTS[:40], numbers)
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all(line.startswith(f"{loud._folder}: ") for line in lines)


def test_the_temporary_folder_lives_as_long_as_the_estimator(new: Callable[..., Classifier], tmp_path: Path) -> None:
    classifier = new().fit(TEXTS, LABELS)
    folder = classifier._folder
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    del classifier
    assert not folder.exists()
    assert new(output=str(tmp_path / "run")).fit(TEXTS, LABELS)._folder == tmp_path / "run"
    with pytest.raises(MinipeftError, match="already holds a run"):
        new(output=str(tmp_path / "run")).fit(TEXTS, LABELS)


def test_a_fitted_estimator_is_pickled_and_copied_without_its_base_model(fitted: Classifier) -> None:
    content = pickle.dumps(fitted)
    assert len(content) < 40_000
    for other in (pickle.loads(content), copy.deepcopy(fitted), pickle.loads(pickle.dumps(pickle.loads(content)))):
        assert other.get_params() == fitted.get_params() and other.result_ == fitted.result_
        assert (other.predict_proba(TEXTS) == fitted.predict_proba(TEXTS)).all()


def test_it_is_a_classifier_that_scikit_learn_clones(fitted: Classifier) -> None:
    assert is_classifier(fitted)
    check_is_fitted(fitted)
    other = clone(fitted)
    assert other.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError, match="Call fit"):
        other.predict(TEXTS)
    assert "method='head'" in repr(other) and "seed" not in repr(other)
    method = minipeft.LoRA(rank=4)
    assert clone(Classifier(method=method)).method == method


def test_cross_val_score_and_grid_search_take_it(new: Callable[..., Classifier]) -> None:
    scores = cross_val_score(new(), TEXTS, LABELS, cv=2, error_score="raise")
    assert scores.shape == (2,) and ((scores >= 0) & (scores <= 1)).all()
    folds = list(StratifiedKFold(2).split(TEXTS, LABELS))
    search = GridSearchCV(new(), {"lr": [1e-4, 1e-2]}, cv=folds, error_score="raise").fit(TEXTS, LABELS)
    assert search.best_params_["lr"] in (1e-4, 1e-2) and search.predict(TEXTS[:3]).shape == (3,)
    train, test = folds[1]
    texts, labels = np.array(TEXTS), np.array(LABELS)
    by_hand = new(lr=1e-2).fit(texts[train], labels[train]).score(texts[test], labels[test])
    assert search.cv_results_["split1_test_score"][1] == by_hand


def test_fit_takes_sample_weights(new: Callable[..., Classifier]) -> None:
    assert has_fit_parameter(new(), "sample_weight") and has_fit_parameter(Regressor(), "sample_weight")
    weights = np.array([0.0 if n % 12 < 6 else 2.0 for n in range(48)])
    equal, weighted, plain = (new(lr=1e-2).fit(TEXTS, LABELS, given) for given in (np.ones(48), weights, None))
    np.testing.assert_allclose(equal.predict_proba(TEXTS), plain.predict_proba(TEXTS), atol=1e-6)
    assert np.abs(weighted.predict_proba(TEXTS) - plain.predict_proba(TEXTS)).max() > 1e-4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(47), "48 texts and 47 weights. Give each text its weight"),
        (1.0, "48 texts and 1 weights"),
        (np.ones((48, 1)), r"weight is \[1.0\], not a finite number from 0 on"),
        ([1] * 47 + [-1], "weight is -1, not a finite number from 0 on"),
        ([np.nan] * 48, "weight is nan, not a finite number"),
        ([np.inf] * 48, "weight is inf, not a finite number"),
        (np.zeros(48), "the weight of every training row is 0"),
    ],
    ids=["length", "number", "matrix", "negative", "nan", "infinite", "zeros"],
)
def test_weights_that_cannot_be_are_one_line(weights: Any, message: str, new: Callable[..., Classifier]) -> None:
    with pytest.raises(MinipeftError, match=message) as caught:
        new().fit(TEXTS, LABELS, weights)
    assert "\n" not in str(caught.value)


CHECKS = [
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_mixin_order,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_passes_the_checks_of_scikit_learn_that_fit_no_numbers(check: Callable[..., None]) -> None:
    check("Classifier", Classifier())


def test_check_estimator_skips_the_checks_whose_x_is_numbers() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator_checks.check_estimator(Classifier())
    assert any("Can't test estimator Classifier which requires input" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (TEXTS[:20], LABELS[:19], r"20 texts and 19 labels"),
        ("a text", ["a"], "'a text' is not a list of texts"),
        ([*TEXTS[:19], None], LABELS[:20], r"X\[19\] is None, not a text"),
        ([("a", "b"), "c"], ["x", "y"], r"X\[1\] is 'c', not a pair of texts"),
        (np.zeros((20, 3)), LABELS[:20], r"X\[0\] is"),
        (TEXTS[:20], ["good"] * 20, "at least two different"),
        (TEXTS[:20], np.linspace(0, 1, 20), "continuous numbers, not classes. Use minipeft.Regressor"),
        (TEXTS[:20], np.full((20, 2), 2), "zeros and ones"),
        (TEXTS[:20], [["a"], ["a", "b"]] * 10, "y is no array"),
        (TEXTS[:20], np.array([*LABELS[:19], 1], dtype=object), "labels are of several types"),
    ],
    ids=[
        "lengths",
        "one text",
        "a missing text",
        "mixed",
        "numbers",
        "one class",
        "continuous",
        "twos",
        "ragged",
        "types",
    ],
)
def test_bad_input_is_one_line(X: Any, y: Any, message: str, new: Callable[..., Classifier]) -> None:
    with pytest.raises(MinipeftError, match=message) as caught:
        new().fit(X, y)
    assert "\n" not in str(caught.value)


def test_labels_may_be_a_column(new: Callable[..., Classifier]) -> None:
    frame = pandas.DataFrame({"text": TEXTS[:20], "label": ["good", "bad"] * 10, "stars": [1.5, 3.0] * 10})
    classifier = new().fit(frame[["text"]], frame[["label"]])
    assert classifier.classes_.tolist() == ["bad", "good"]
    assert classifier.score(frame[["text"]], frame[["label"]]) == classifier.score(frame["text"], frame["label"])
    regressor = Regressor(**{name: value for name, value in classifier.get_params().items()})
    regressor.fit(frame[["text"]], frame[["stars"]])
    assert regressor.score(frame["text"], frame[["stars"]]) == regressor.score(frame["text"], frame["stars"])


def test_unknown_settings_and_those_of_the_data_are_refused() -> None:
    with pytest.raises(MinipeftError, match="unknown setting 'ranks'"):
        Classifier(ranks=3)  # type: ignore[call-arg]
    with pytest.raises(MinipeftError, match=r"unknown setting 'learning_rate' \(did you mean lr\?\)\.$"):
        Regressor(learning_rate=1e-3)  # type: ignore[call-arg]
    with pytest.raises(MinipeftError, match="data is not a setting here"):
        Classifier().set_params(data="a.csv")
    assert "quiet" in DEFAULTS


@pytest.mark.full
def test_it_works_without_scikit_learn(tiny_checkpoint: Path) -> None:
    script = f"""
import sys
sys.modules["sklearn"] = None
import minipeft
texts, labels = ["a good film", "a bad film"] * 10, ["yes", "no"] * 10
classifier = minipeft.Classifier(model={str(tiny_checkpoint)!r}, method="head", epochs=1, device="cpu")
try:
    classifier.predict(texts)
except minipeft.MinipeftError as error:
    assert "not fitted yet" in str(error)
assert set(classifier.fit(texts, labels).predict(texts)) <= {{"yes", "no"}}
"""
    done = run_command("-c", script)
    assert done.returncode == 0, done.stderr
