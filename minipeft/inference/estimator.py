"""A text classifier with scikit-learn's interface over minipeft.train; scikit-learn itself is not needed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Concatenate, ParamSpec

import numpy as np

from minipeft.errors import MinipeftError, short_repr
from minipeft.inference.predict import load_run
from minipeft.inference.predictor import Predictor
from minipeft.training.run import train
from minipeft.training.settings.setting import rows, signature_of
from minipeft.training.settings.train_settings import TrainSettings

# Settings that `fit` decides: the texts and labels are its arguments.
OF_FIT = (
    *("task", "data", "text_column", "pair_column", "label_column", "label_type", "label_separator", "threshold"),
    *("validation", "resume"),
)
DEFAULTS = {name: row.default for name, row in rows(TrainSettings).items() if name not in OF_FIT} | {"quiet": True}
PICKLED = ("config.json", "result.json", "metrics.jsonl", "adapter/*")  # the files that prediction needs

Array = np.ndarray[Any, Any]
Keywords = ParamSpec("Keywords")


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


class Classifier:
    """Classify whole texts, or pairs of texts: an estimator for scikit-learn's tools.

        classifier = Classifier(model="roberta-base", method="lora", rank=8, epochs=3).fit(texts, labels)
        classifier.predict(["a good film"])

    `fit` draws 10 percent of the texts, stratified by class, to choose the best epoch.

    Args:
        settings: the settings of `minipeft.train`, but for those of the data. The run's folder is `output`, which
            must be new; without it, a temporary folder that lives as long as the estimator. `quiet` is true.

    Attributes:
        classes_: the labels, sorted, as they were given to `fit`.
        result_: the content of result.json.

    Raises:
        MinipeftError: for an unknown setting; other values are checked by `fit`.
    """

    output: str | None
    device: str
    _estimator_type = "classifier"  # for scikit-learn before 1.6
    _files: dict[str, bytes]  # of an unpickled estimator

    @_with_keywords_of(TrainSettings)
    def __init__(self, **settings: Any) -> None:
        for name, default in DEFAULTS.items():
            setattr(self, name, default)
        self.set_params(**settings)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return every setting by name; `deep` has no effect, as no setting is an estimator."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def set_params(self, **settings: Any) -> Classifier:
        """Change settings by name; return the estimator."""
        for name, value in settings.items():
            if name in OF_FIT:
                raise MinipeftError(f"Classifier: {name} is not a setting here. Pass texts and labels to fit.")
            if name not in DEFAULTS:
                raise MinipeftError(f"Classifier: unknown setting {name!r}. The settings are those of minipeft.train.")
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any) -> Classifier:
        """Train on texts.

        Args:
            X: (num_texts,) texts, or (num_texts, 2) pairs of texts; a list, an array, a Series or a DataFrame.
            y: (num_texts,) labels: names, numbers or booleans, all of one type.

        Returns:
            The estimator.

        Raises:
            MinipeftError: for bad input; the message names the row.
        """
        texts, pairs = _read_texts(X)
        labels = np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise MinipeftError(
                f"fit: {len(texts)} texts and labels of shape {labels.shape}. Give each text one label."
            )
        try:
            classes, indices = np.unique(labels, return_inverse=True)
        except TypeError:
            raise MinipeftError("fit: the labels are of several types. Give labels of one type.") from None
        names = [str(name) for name in classes.tolist()]
        columns = {"text": texts, "label": [names[index] for index in indices.tolist()]}
        temporary = TemporaryDirectory(prefix="minipeft-") if self.output is None else None
        settings = self.get_params() | ({"output": f"{temporary.name}/run"} if temporary else {})
        if pairs is not None:
            columns["pair"] = pairs
            settings["pair_column"] = "pair"
        result = train(data=columns, label_type="classes", **settings)
        self._temporary, self._folder = temporary, result.output
        self._predictor: Predictor | None = result.predictor
        self._columns = [result.predictor.task.labels.index(name) for name in names]
        self.classes_, self.result_ = classes, result.content
        return self

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each text of `X`, (num_texts,)."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of `X`, (num_texts, num_classes), float64; columns in the order of `classes_`."""
        predictor = self._load()
        return predictor.predict_proba(*_read_texts(X))[:, self._columns]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the fraction of correct predictions of `X` against the labels `y`, weighted by `sample_weight`."""
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))

    def _load(self) -> Predictor:
        """Return the fitted model; an unpickled estimator loads its base model here."""
        if not hasattr(self, "classes_"):
            message = "this Classifier is not fitted yet. Call fit with texts and labels."
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
        return state | {"_predictor": None, "_temporary": None, "_folder": None} if "classes_" in state else state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def __repr__(self) -> str:
        changed = [
            f"{name}={getattr(self, name)!r}" for name, default in DEFAULTS.items() if getattr(self, name) != default
        ]
        return f"Classifier({', '.join(changed)})"


def _read_texts(X: Any) -> tuple[list[str], list[str] | None]:
    """Return the texts, and the second texts of pairs."""
    if isinstance(X, str) or not hasattr(X, "__len__"):
        raise MinipeftError(f"Classifier: {short_repr(X)} is not a list of texts. Pass a list, an array or a Series.")
    rows: Sequence[Any] = list(X.to_numpy() if hasattr(X, "to_numpy") else X)
    paired = bool(rows) and not isinstance(rows[0], str) and hasattr(rows[0], "__len__")
    for place, row in enumerate(rows):
        parts = list(row) if paired and hasattr(row, "__len__") and not isinstance(row, str) else [row]
        if len(parts) != 1 + paired or not all(isinstance(part, str) for part in parts):
            kind = "a pair of texts" if paired else "a text"
            raise MinipeftError(f"Classifier: X[{place}] is {short_repr(row)}, not {kind}. Pass whole texts.")
    if paired:
        return [str(row[0]) for row in rows], [str(row[1]) for row in rows]
    return [str(row) for row in rows], None
