"""A trained model and what it needs to predict: texts → logits, probabilities, labels."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.data.tasks.task import Task
from minipeft.data.tokens.examples import encode_texts
from minipeft.data.tokens.long_texts import LongTexts
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError, short_repr
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.evaluate import predict_logits


@dataclass(frozen=True)
class Predictor:
    """A trained model with its tokenizer.

    Attributes:
        settings: the run's config.json; "max_length" and "max_tokens" are read.
        device: where the model is.
    """

    model: SequenceClassifier
    tokenizer: Tokenizer
    task: Task
    settings: dict[str, Any]
    device: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order of the columns of `predict_proba`; empty for regression."""
        return self.task.labels

    def predict(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Return what is predicted for each text, with six digits.

        It is a dict of "label", the class name, and "probabilities"; of "labels", the names of those whose probability
        reaches the threshold, and "probabilities" for multi-label; of "score" for regression; of "entities" or "tags"
        for token classification, whose texts may be lists of words.
        """
        names, inputs = list(self.model.config.id2label.values()), self._inputs("texts", texts)
        return self.task.problem.predictions(self.predict_logits(inputs, pairs), names, inputs)

    def predict_proba(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> np.ndarray[Any, Any]:
        """Return the probabilities, (num_texts, num_labels), float64; the columns are in the order of `task.labels`.

        Raises:
            MinipeftError: for regression, which has none.
        """
        return self.task.problem.probabilities(self.predict_logits(texts, pairs))

    def predict_logits(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> Tensor:
        """Return the logits, (num_texts, num_labels), or (num_words, num_labels), float32 on the CPU.

        Raises:
            MinipeftError: for texts that do not fit the task, and for a logit that is not finite.
        """
        texts = self._inputs("texts", texts)
        pairs = None if pairs is None else self._inputs("pairs", pairs)
        if (pairs is not None) != (len(self.task.columns) == 2):
            columns = " and ".join(self.task.columns)
            raise MinipeftError(
                f"{self.task.name} takes {columns}: give {'each text a pair' if pairs is None else 'no pair'}"
            )
        if not texts:
            return torch.zeros(0, self.task.num_labels)
        long_texts, max_length = LongTexts.of(self.settings), self.settings["max_length"]
        examples = encode_texts(self.task, texts, pairs, self.tokenizer, max_length, long_texts)
        logits = predict_logits(self.model, examples, self.settings["max_tokens"])
        wrong = ~(logits < math.inf).all(1)  # -inf stands for a word without a token
        if wrong.any():
            row = int(wrong.nonzero()[0])
            text = f" for the text {short_repr(texts[row])}" if len(texts) == len(logits) else ""
            raise MinipeftError(
                f"the model gives {logits[row].tolist()}{text}: its weights are damaged; fetch them again"
            )
        return logits

    def _inputs(self, name: str, texts: Iterable[Any]) -> list[Any]:
        """Return any iterable of texts, a Series or an array included, as a list; one str is not meant as letters."""
        if isinstance(texts, str):
            raise MinipeftError(f"{name}: {short_repr(texts)} is one text. Pass a list of texts.")
        return self.task.problem.inputs(name, texts)
