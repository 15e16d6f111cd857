"""Token classification: every word has a tag, such as the type of an entity or a part of speech.

A row is a list of words and a list of tags. The first token of a word has its tag; the other tokens of a word, and
special tokens, have none (IGNORE_INDEX). Tags that are all O, B-<type> or I-<type> are entities, which are scored as
whole spans; others are scored word by word.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, format_names, is_unicode, short_repr
from minipeft.files import parse_json
from minipeft.problems.labels import class_name, nearest_label, sorted_names
from minipeft.problems.metrics import METRICS, Array
from minipeft.problems.problem import IGNORE_INDEX, Found, Mistake, Problem, most_severe
from minipeft.problems.single_label import SingleLabel

Entity = tuple[int, int, str]  # the first word, the word after the last one, and the type


class Words(list[str]):
    """The words of a text, with the text and the first and last character of each."""

    def __init__(self, text: str) -> None:
        found = BertPreTokenizer().pre_tokenize_str(text)
        super().__init__(word for word, _ in found)
        self.text, self.spans = text, [span for _, span in found]


@dataclass(frozen=True)
class TokenLabels(SingleLabel):
    """Each word of an example has one of K tags; its target is the tuple of their indices."""

    name: ClassVar[str] = "token_classification"
    plural: ClassVar[str] = "tags"
    columns: ClassVar[tuple[str, str]] = ("tokens", "ner_tags")
    pipeline_tag: ClassVar[str] = "token-classification"
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"
    has_thresholds: ClassVar[bool] = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("f1", "precision", "recall", "accuracy") if self.has_entities else ("accuracy", "macro_f1")

    @property
    def has_entities(self) -> bool:
        """Whether the tags are those of entities: O, B-<type> and I-<type>."""
        return all(re.fullmatch(r"O|[BI]-.+", name) for name in self.labels) and set(self.labels) != {"O"}

    # -- reading --

    @classmethod
    def find(cls, table: Table, column: str, label_type: str, settings: Mapping[str, Any]) -> Found:
        counts: Counter[str] = Counter()
        rows = unopened = 0
        for place, (value,) in table.read([column]):
            rows += 1
            names = _tag_names(value, place)
            counts.update(names)
            unopened += sum(
                name.startswith("I-") and previous not in (name, f"B-{name[2:]}")
                for previous, name in pairwise(["O", *names])
            )
        if len(counts) < 2:
            raise MinipeftError(f"{table.place}: {column} has {len(counts)} different tags. At least two are needed.")
        found = table.classes.get(column) or sorted_names(counts)
        problem = cls(tuple(found))
        if problem.has_entities and found == sorted_names(counts):
            problem = cls(tuple(sorted(found, key=lambda name: (name != "O", name[2:], name))))
        warnings: tuple[str, ...] = ()
        if problem.has_entities and unopened:
            counted = f"{unopened:,} I- tags without a B- before them"
            warnings = (f"{table.place}: {counted} are read as the start of an entity",)
        return Found(problem, {name: counts[name] for name in problem.labels}, rows, warnings=warnings)

    def read(self, value: Any, place: str) -> tuple[int, ...]:  # type: ignore[override]
        names = _tag_names(value, place)
        for name in names:
            if name not in self.numbers:
                raise MinipeftError(
                    f"{place}: tag {short_repr(name)} is not one of the training file's ({format_names(self.labels)})"
                    f"{nearest_label(name, self.labels)}. Fix or remove the row."
                )
        return tuple(self.numbers[name] for name in names)

    def read_text(self, value: Any, column: str, place: str) -> Any:
        """Return a list of words, or its text in JSON; another text is split at white space and punctuation."""
        value = _read_list(value, start=r'\[\s*["\]]')  # "[1]" is a text
        if isinstance(value, str):
            return Words(super().read_text(value, column, place))
        words = value if isinstance(value, (list, tuple, np.ndarray)) else [None]
        if not all(isinstance(word, str) and is_unicode(word) for word in words):
            raise MinipeftError(
                f"{place}: {column} is {short_repr(value)}, not a list of words. Fix or remove the row."
            )
        return value if isinstance(value, Words) else list(value)

    def check_row(self, text: Any, target: Any, place: str) -> None:
        if len(text) != len(target):
            raise MinipeftError(f"{place}: {len(text)} words and {len(target)} tags. Give each word one tag.")

    def store(self, targets: Iterable[Any] = ()) -> Any:
        return list(targets)

    def strata(self, targets: Sequence[Any]) -> None:  # type: ignore[override]
        return None

    def count(self, targets: Sequence[Any]) -> Counter[int]:
        return Counter(_known(targets).tolist())

    # -- training --

    @staticmethod
    def targets(labels: Sequence[Any], lengths: Sequence[int], num_labels: int) -> Tensor:
        """Return the labels of all tokens, (total_tokens,), int64; IGNORE_INDEX for tokens without one."""
        for number, (label, length) in enumerate(zip(labels, lengths, strict=True)):
            if len(label) != length or not {*label} <= {IGNORE_INDEX, *range(num_labels)}:
                raise MinipeftError(
                    f"labels {short_repr(label)} of sequence {number} are not {length} numbers below {num_labels}. "
                    f"Give each token a label, or {IGNORE_INDEX}."
                )
        return torch.from_numpy(_flat(labels))

    @classmethod
    def pad(cls, targets: Tensor, dummies: Sequence[int]) -> Tensor:
        return torch.cat([targets, targets.new_full((sum(dummies),), IGNORE_INDEX)])

    def total_weight(self, targets: Sequence[Any], class_weights: Sequence[float] = ()) -> float:
        """The sum of the class weights of the words; their number without."""
        flat = _known(targets)
        return max(1.0, float(np.asarray(class_weights)[flat].sum() if class_weights else len(flat)))

    def balanced_weights(self, targets: Sequence[Any]) -> tuple[float, ...]:
        return super().balanced_weights(_known(targets).tolist())

    def baseline(self, targets: Sequence[Any]) -> tuple[float, float]:
        return super().baseline(_known(targets).tolist())

    # -- evaluation --

    def score(self, logits: Tensor, targets: Sequence[Any], metrics: Sequence[str] = ()) -> dict[str, float]:
        """Return eval_loss, the mean over the words, and metrics; words that were cut off are left out.

        Args:
            logits: (num_words, num_labels), float32; -inf for a word without a token.
            targets: The tags of each example.
            metrics: Names in METRICS. Those of entities compare exact spans, as seqeval does.
        """
        known = ~logits[:, 0].isneginf().numpy()
        actual, predicted = _flat(targets)[known], self.decide(logits)[known]
        values = {"eval_loss": self.losses(logits[known], torch.from_numpy(actual)).mean().item()}
        spans = words = predicted, actual
        if self.has_entities:  # which of all entities on either side are predicted, and which are labels, as 0 and 1
            found, expected = (self._entities(side, targets, known) for side in words)
            both = [*found | expected]
            spans = (
                np.array([entity in found for entity in both], int),
                np.array([one in expected for one in both], int),
            )
        for name in metrics:
            values[name] = METRICS[name].function(*(words if name == "accuracy" else spans))
        return values

    def _entities(self, tags: Array, targets: Sequence[Any], known: Array | None = None) -> set[Entity]:
        """Return the entities of all examples, or of their known words; an entity ends where its example does."""
        examples = np.repeat(np.arange(len(targets)), [len(target) for target in targets])
        starts = [*np.flatnonzero(np.diff(examples if known is None else examples[known], prepend=-1)), len(tags)]
        names = [self.labels[tag] for tag in tags]
        return {
            (start + first, start + end, kind)
            for start, stop in pairwise(starts)
            for first, end, kind in find_entities(names[start:stop])
        }

    def decide(self, logits: Tensor) -> Array:
        """Return the most probable tag of each word; that of a word without a token is O, if there is one."""
        missing = logits[:, 0].isneginf().numpy()
        return np.where(missing, self.numbers.get("O", 0), logits.argmax(1).numpy())

    # -- prediction --

    def inputs(self, name: str, texts: Iterable[Any]) -> list[Any]:
        """Return texts as lists of words; a text is split at white space and punctuation."""
        return [self.read_text(text, f"{name}[{place}]", "predict") for place, text in enumerate(texts)]

    def calibrate(self, logits: Tensor, targets: Sequence[Any]) -> Problem:
        """Fit one temperature for the words that have a token."""
        known = ~logits[:, 0].isneginf().numpy()
        fitted = SingleLabel(self.labels).calibrate(logits[known], _flat(targets)[known].tolist())
        return replace(self, temperatures=fitted.temperatures)

    def predictions(self, logits: Tensor, names: Sequence[str], inputs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return a tag for each word of a list, and for a text its entities, or its words with their tags.

        An entity has "label", "start" and "end" (characters of the text), "text", and "score", the mean probability of
        the tags of its words.
        """
        decided, best = self.decide(logits).tolist(), self.probabilities(logits).max(1)
        predictions: list[dict[str, Any]] = []
        start = 0
        for words in inputs:
            tags = [names[index] for index in decided[start : start + len(words)]]
            scores = best[start : start + len(words)]
            start += len(words)
            if not isinstance(words, Words):
                predictions.append({"tags": tags})
            elif not self.has_entities:
                predictions.append({"tags": [list(pair) for pair in zip(words, tags, strict=True)]})
            else:
                entities = []
                for first, end, kind in find_entities(tags):
                    begin, stop = words.spans[first][0], words.spans[end - 1][1]
                    score = round(float(scores[first:end].mean()), 6)
                    place = {"label": kind, "start": begin, "end": stop, "text": words.text[begin:stop]}
                    entities.append(place | {"score": score})
                predictions.append({"entities": entities})
        return predictions

    def probabilities(self, logits: Tensor) -> Array:
        """Return the probability of each tag, (num_words, num_labels), float64; 0 for a word without a token."""
        return np.nan_to_num(super().probabilities(logits))

    def report(self, logits: Tensor, targets: Sequence[Any]) -> dict[str, Any]:
        """Return the figures of the words, or of the types of entities and the confusion of the words' types."""
        from minipeft.problems.figures import average_figures, label_figures, report_classes

        actual, (predicted, confidence) = _flat(targets), self.confident(logits)
        if not self.has_entities:
            return report_classes(actual, predicted, confidence, self.labels)
        types = list(dict.fromkeys(name[2:] or name for name in self.labels))
        to_type = np.array([types.index(name[2:] or name) for name in self.labels])
        report = report_classes(to_type[actual], to_type[predicted], confidence, types)
        found, expected = (self._entities(side, targets) for side in (predicted, actual))
        sides = [Counter(kind for *_, kind in side) for side in (found & expected, found, expected)]
        classes = [label_figures(kind, *(side[kind] for side in sides)) for kind in types if kind != "O"]
        micro = label_figures("micro", *(side.total() for side in sides))
        names = ("precision", "recall", "f1", "support")
        averages = {"micro": {name: micro[name] for name in names}, **average_figures(classes)}
        return report | {"classes": classes, "averages": averages}

    def mistakes(self, logits: Tensor, targets: Sequence[Any], inputs: Any = ()) -> Iterator[Mistake]:
        """Yield the words with a wrong tag, in brackets in their sentence, by the probability of the tag."""
        actual, (predicted, confidence) = _flat(targets), self.confident(logits)
        starts = np.cumsum([0, *(len(target) for target in targets)])
        for row in most_severe(np.where(predicted == actual, 0.0, confidence)):
            example = int(np.searchsorted(starts, row, side="right")) - 1
            words = [f"[{word}]" if starts[example] + n == row else word for n, word in enumerate(inputs[example])]
            tags = {"label": self.labels[actual[row]], "prediction": self.labels[predicted[row]]}
            fields = {"text": " ".join(words), **tags, "confidence": float(confidence[row])}
            yield Mistake(example, float(confidence[row]), fields)


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence, read as conlleval does: an I- that continues no entity begins one."""
    found: list[Entity] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.append((start, place, kind))
            kind = ""
        if name and not kind:
            start, kind = place, name
    return found


def _tag_names(value: Any, place: str) -> list[str]:
    value = _read_list(value)
    if not isinstance(value, (list, tuple)):
        raise MinipeftError(f"{place}: the tags are {short_repr(value)}, not a list. Fix or remove the row.")
    return [class_name(name, place) for name in value]


def _read_list(value: Any, start: str = r"\[") -> Any:
    """Return a list that a csv file has as JSON, and that begins with `start`; other values are unchanged."""
    with suppress(ValueError):
        return parse_json(value) if isinstance(value, str) and re.match(start, value) else value
    return value


def _known(targets: Sequence[Any]) -> Array:
    """Return the tags of the words that were not cut off, (num_words,), int64."""
    flat = _flat(targets)
    return flat[flat != IGNORE_INDEX]


def _flat(targets: Sequence[Any]) -> Array:
    """Return the tags of all words, (num_words,), int64."""
    return np.fromiter(chain.from_iterable(targets), dtype=np.int64)
