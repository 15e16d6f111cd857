"""Estimators with scikit-learn's interface over minipeft.train; scikit-learn itself is not needed."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from minipeft.errors import MinipeftError, short_repr
from minipeft.inference.predict import load_run
from minipeft.inference.predictor import Predictor
from minipeft.problems import LABEL_SETS
from minipeft.training.run import train
from minipeft.training.settings.other_names import nearest_setting
from minipeft.training.settings.setting import rows, signature_of
from minipeft.training.settings.train_settings import TrainSettings

# Settings that `fit` decides: the texts and labels are its arguments.
OF_FIT = (
    *("task", "data", "text_column", "pair_column", "label_column", "label_type", "label_separator", "threshold"),
    *("validation", "weight_column", "resume"),
)
DEFAULTS = {name: row.default for name, row in rows(TrainSettings).items() if name not in OF_FIT} | {"quiet": True}
PICKLED = ("config.json", "result.json", "metrics.jsonl", "adapter/*")  # the files that prediction needs

Array = np.ndarray[Any, Any]
Keywords = ParamSpec("Keywords")
Estimator = TypeVar("Estimator", bound="TextEstimator")


def _with_keywords_of(
    settings: Callable[Keywords, Any],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Keywords], None]]:
    """Give __init__ the signature of the settings, which scikit-learn, help() and type checkers read."""

    def decorate(function: Callable[..., None]) -> Callable[Concatenate[Any, Keywords], None]:
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        keywords = signature_of(TrainSettings, without=OF_FIT, defaults=DEFAULTS)
        function.__signature__ = inspect.Signature([itself, *keywords])  # type: ignore[attr-defined]
        return function

    return decorate


class TextEstimator:
    """What Classifier and Regressor have in common: the settings, the run behind a fitted estimator, and its file."""

    output: str | None
    device: str
    quiet: bool
    _estimator_type: str  # for scikit-learn before 1.6
    _files: dict[str, bytes]  # of an unpickled estimator

    @_with_keywords_of(TrainSettings)
    def __init__(self, **settings: Any) -> None:
        for name, default in DEFAULTS.items():
            setattr(self, name, default)
        self.set_params(**settings)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return every setting by name; `deep` has no effect, as no setting is an estimator."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def set_params(self: Estimator, **settings: Any) -> Estimator:
        """Change settings by name; return the estimator."""
        kind = type(self).__name__
        for name, value in settings.items():
            if name in OF_FIT:
                raise MinipeftError(f"{kind}: {name} is not a setting here. Pass texts and labels to fit.")
            if name not in DEFAULTS:
                meant = nearest_setting(name, DEFAULTS) or ". The settings are those of minipeft.train"
                raise MinipeftError(f"{kind}: unknown setting {name!r}{meant}.")
            setattr(self, name, value)
        return self

    def _fit(self, X: Any, labels: list[Any], label_type: str, sample_weight: Any) -> Predictor:
        """Train on texts and their labels, and return the model."""
        texts, pairs = _read_texts(X)
        columns = {"text": texts, "label": labels} | ({} if pairs is None else {"pair": pairs})
        if sample_weight is not None:
            columns["weight"] = np.atleast_1d(np.asarray(sample_weight, dtype=object)).tolist()
        for name, values in columns.items():
            if len(values) != len(texts):
                raise MinipeftError(f"fit: {len(texts)} texts and {len(values)} {name}s. Give each text its {name}.")
        temporary = TemporaryDirectory(prefix="minipeft-") if self.output is None else None
        settings = self.get_params() | ({"output": f"{temporary.name}/run"} if temporary else {})
        settings |= {f"{name}_column": name for name in ("pair", "weight") if name in columns}
        with _warnings_of(str(settings["output"]), self.quiet):
            result = train(data=columns, label_type=label_type, **settings)
        self._temporary, self._folder = temporary, result.output
        self._predictor: Predictor | None = result.predictor
        self.result_ = result.content
        return result.predictor

    def _load(self) -> Predictor:
        """Return the fitted model; an unpickled estimator loads its base model here."""
        if not self.__sklearn_is_fitted__():
            message = f"this {type(self).__name__} is not fitted yet. Call fit with texts and labels."
            exceptions = sys.modules.get("sklearn.exceptions")
            raise exceptions.NotFittedError(message) if exceptions else MinipeftError(message)
        if self._predictor is None:
            self._temporary = TemporaryDirectory(prefix="minipeft-")
            self._folder = Path(self._temporary.name)
            for name, content in self._files.items():
                (self._folder / name).parent.mkdir(exist_ok=True)
                (self._folder / name).write_bytes(content)
            self._predictor = load_run(self._folder, self.device)
        return self._predictor

    def __getstate__(self) -> dict[str, Any]:
        """The settings and, of a fitted estimator, the adapter's files; the base model is known by its name."""
        state = dict(self.__dict__)
        if state.get("_predictor") is not None:
            files = [path for pattern in PICKLED for path in sorted(self._folder.glob(pattern))]
            state["_files"] = {str(path.relative_to(self._folder)): path.read_bytes() for path in files}
        return state | {"_predictor": None, "_temporary": None, "_folder": None} if "result_" in state else state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "result_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(multi_label=True) if self._estimator_type == "classifier" else None,
            regressor_tags=RegressorTags() if self._estimator_type == "regressor" else None,
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def __repr__(self) -> str:
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != DEFAULTS[name]]
        return f"{type(self).__name__}({', '.join(changed)})"


class Classifier(TextEstimator):
    """Classify whole texts, or pairs of texts: an estimator for scikit-learn's tools.

        classifier = Classifier(model="roberta-base", method="lora", rank=8, epochs=3).fit(texts, labels)
        classifier.predict(["a good film"])

    `fit` draws 10 percent of the texts, stratified by class, to choose the best epoch.

    Args:
        settings: the settings of `minipeft.train`, but for those of the data. The run's folder is `output`, which
            must be new; without it, a temporary folder that lives as long as the estimator. `quiet` is true.

    Attributes:
        classes_: the labels, sorted, as they were given to `fit`; of multi-label data the columns of y.
        result_: the content of result.json.

    Raises:
        MinipeftError: for an unknown setting; other values are checked by `fit`.
    """

    _estimator_type = "classifier"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Classifier:
        """Train on texts.

        Args:
            X: (num_texts,) texts, or (num_texts, 2) pairs of texts; a list, an array, a Series or a DataFrame.
            y: (num_texts,) labels: names, whole numbers or booleans, all of one type; or (num_texts, num_labels) zeros
                and ones, a column for each label of multi-label data.
            sample_weight: (num_texts,) finite numbers from 0 on: factors on the losses of the training texts.

        Returns:
            The estimator.

        Raises:
            MinipeftError: for bad input; the message names the row.
        """
        labels = _array_of(y)
        if labels.ndim == 2:
            classes = np.asarray(getattr(y, "columns", np.arange(labels.shape[1])))
            if not np.isin(labels, (0, 1)).all() or not labels.any(0).all():
                raise MinipeftError("fit: y has two dimensions. Give zeros and ones, with a one in every column.")
            names = [str(name) for name in classes.tolist()]
            targets: list[Any] = [[names[at] for at in np.flatnonzero(row)] for row in labels]
        else:
            if labels.dtype.kind == "f" and (labels % 1 != 0).any():
                raise MinipeftError("fit: the labels are continuous numbers, not classes. Use minipeft.Regressor.")
            try:
                classes, indices = np.unique(labels, return_inverse=True)
            except TypeError:
                raise MinipeftError("fit: the labels are of several types. Give labels of one type.") from None
            names = [str(name) for name in classes.tolist()]
            targets = [names[index] for index in indices.tolist()]
        predictor = self._fit(X, targets, LABEL_SETS if labels.ndim == 2 else "classes", sample_weight)
        self._columns = [predictor.task.labels.index(name) for name in names]
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each text of `X`, (num_texts,), or 0 and 1, (num_texts, num_labels)."""
        predictor = self._load()
        chosen = predictor.task.problem.decide(predictor.predict_logits(*_read_texts(X)))
        if chosen.ndim == 2:
            return chosen[:, self._columns].astype(np.int64)
        return self.classes_[np.argsort(self._columns)[chosen]]

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of `X`, (num_texts, num_classes), float64; columns in the order of `classes_`."""
        predictor = self._load()
        return predictor.predict_proba(*_read_texts(X))[:, self._columns]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the fraction of correct predictions of `X` against the labels `y`, weighted by `sample_weight`.

        A prediction for multi-label data is correct if it is for all labels.
        """
        correct = self.predict(X) == _array_of(y)
        return float(np.average(correct if correct.ndim == 1 else correct.all(1), weights=sample_weight))


class Regressor(TextEstimator):
    """Predict a number for whole texts, or pairs of texts: an estimator like `Classifier`.

    Args:
        settings: as of `Classifier`.

    Attributes:
        result_: the content of result.json.
    """

    _estimator_type = "regressor"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Regressor:
        """Train on the texts `X`, their numbers `y` and `sample_weight`, both (num_texts,); see `Classifier.fit`."""
        labels = _array_of(y)
        if labels.ndim != 1 or labels.dtype.kind not in "fiu":
            raise MinipeftError(f"fit: labels of shape {labels.shape} and type {labels.dtype}. Give each a number.")
        self._fit(X, labels.tolist(), "numbers", sample_weight)
        return self

    def predict(self, X: Any) -> Array:
        """Return the number of each text of `X`, (num_texts,), float64."""
        predictor = self._load()
        return predictor.task.problem.decide(predictor.predict_logits(*_read_texts(X))).astype(np.float64)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of `X`'s predictions, 1 - Σ (`y` - prediction)² / Σ (`y` - mean)², weighted by `sample_weight`."""
        labels = _array_of(y).astype(np.float64)
        others = self.predict(X), np.average(labels, weights=sample_weight)
        error, variance = (np.average((labels - other) ** 2, weights=sample_weight) for other in others)
        return float(1 - error / variance)


@contextmanager
def _warnings_of(run: str, quiet: bool) -> Iterator[None]:
    """Log no warning if quiet; otherwise each with the run's name, which tells those of a grid search apart."""

    def add_name(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{run}: {record.getMessage()}", None
        return not quiet or record.levelno >= logging.ERROR

    logger = logging.getLogger("minipeft")
    logger.addFilter(add_name)
    try:
        yield
    finally:
        logger.removeFilter(add_name)


def _array_of(y: Any) -> Array:
    try:
        return np.squeeze(np.asarray(y), -1) if np.shape(y)[1:] == (1,) else np.asarray(y)
    except ValueError:  # rows of several lengths
        raise MinipeftError("fit: y is no array. Give each text one label, or a row of zeros and ones.") from None


def _read_texts(X: Any) -> tuple[list[str], list[str] | None]:
    """Return the texts, and the second texts of pairs."""
    if isinstance(X, str) or not hasattr(X, "__len__"):
        raise MinipeftError(f"X: {short_repr(X)} is not a list of texts. Pass a list, an array or a Series.")
    rows: Sequence[Any] = list(X.to_numpy() if hasattr(X, "to_numpy") else X)
    if getattr(X, "shape", ())[1:] == (1,):  # a DataFrame or array of one column
        rows = [row[0] for row in rows]
    paired = bool(rows) and not isinstance(rows[0], str) and hasattr(rows[0], "__len__")
    for place, row in enumerate(rows):
        parts = list(row) if paired and hasattr(row, "__len__") and not isinstance(row, str) else [row]
        if len(parts) != 1 + paired or not all(isinstance(part, str) for part in parts):
            kind = "a pair of texts" if paired else "a text"
            raise MinipeftError(f"X[{place}] is {short_repr(row)}, not {kind}. Pass whole texts.")
    if paired:
        return [str(row[0]) for row in rows], [str(row[1]) for row in rows]
    return [str(row) for row in rows], None
