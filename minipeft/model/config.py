"""The fields of config.json that every encoder family has, under Hugging Face's names."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from minipeft.errors import MinipeftError, check_choice, check_float, check_int, check_probability, short_repr
from minipeft.problems import PROBLEMS, problem_class, problem_row, token_problem_type

# Upper bounds on the sizes in a config.json; no published model comes near them.
LARGEST_SIZE, MOST_LAYERS, MOST_LABELS = 1 << 24, 1 << 10, 1 << 20

# Ends of transformers' class names whose tensors may have the names of a classifier's head.
OTHER_HEADS = ("ForQuestionAnswering", "ForMultipleChoice")
HIDDEN_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# Model types whose first token has position pad_token_id + 1; in the other families it has position 0.
POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; the defaults are roberta-base's (Liu et al. 2019, table 9).

    A family whose config.json has other fields or other names has a subclass in its own file.

    Attributes:
        model_type: The family in the registry: "roberta", "bert", ...
        vocab_size: Number of word embeddings.
        hidden_size: Features of a token between the layers.
        num_hidden_layers: Number of layers.
        num_attention_heads: Heads of a layer; each has hidden_size / num_attention_heads features.
        intermediate_size: Features inside the feed-forward network.
        hidden_act: Activation of the feed-forward network, one of HIDDEN_ACTIVATIONS.
        max_position_embeddings: Rows of the position table, including its offset; see `max_length`.
        type_vocab_size: Number of token types: 1 in RoBERTa, 2 in BERT.
        pad_token_id: Id of the padding token, which only determines where RoBERTa's positions start.
        layer_norm_eps: Added to the variance.
        initializer_range: Standard deviation of new weights.
        hidden_dropout_prob: Dropout probability after the embeddings and after each sublayer.
        attention_probs_dropout_prob: Dropout probability of the attention weights.
        classifier_dropout: Dropout probability in the head; None means hidden_dropout_prob, as in transformers.
        id2label: Class index → name.
        problem_type: The kind of labels, a name in PROBLEMS; None: classes, or regression with one label.
        architectures: Names of transformers' classes that config.json gives.

    Raises:
        MinipeftError: for a value that no encoder can have; the message names the field.
    """

    model_type: str = "roberta"
    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    problem_type: str | None = None
    architectures: tuple[str, ...] = ()

    # For subclasses: our field → its name in config.json, where the two differ.
    JSON_NAMES: ClassVar[dict[str, str]] = {}
    # Our fields that config.json lacks, because they are constants of the family.
    NOT_IN_JSON: ClassVar[tuple[str, ...]] = ()
    # Fields of config.json that would change the mathematics → the only supported value.
    SUPPORTED: ClassVar[dict[str, Any]] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    # Fields that are checked as a size and as a probability.
    SIZES: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
    )
    PROBABILITIES: ClassVar[tuple[str, ...]] = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
    )

    def __post_init__(self) -> None:
        for name in self.SIZES:
            most = MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE
            if check_int(name, value := getattr(self, name)) > most:
                raise MinipeftError(f"{name} {short_repr(value)} is beyond any model's, {most}")
        for name in self.PROBABILITIES:
            if getattr(self, name) is not None or name != "classifier_dropout":
                check_probability(name, getattr(self, name))
        for name in ("layer_norm_eps", "initializer_range"):
            check_float(name, getattr(self, name), least=0)
        check_choice("hidden_act", self.hidden_act, HIDDEN_ACTIVATIONS)
        if self.problem_type is not None:
            check_choice("problem_type", self.problem_type, PROBLEMS)
            fewest = PROBLEMS[self.problem_type].fewest
            if self.num_labels < fewest:
                raise MinipeftError(f"problem_type {self.problem_type} needs {fewest} labels or more")
        check_distinct(list(self.id2label.values()), "id2label")
        if list(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise MinipeftError(f"id2label {short_repr(self.id2label)} does not count its classes from 0")
        if self.hidden_size % self.num_attention_heads:
            raise MinipeftError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise MinipeftError(
                f"pad_token_id {short_repr(self.pad_token_id)} is not in the vocabulary of {self.vocab_size}"
            )
        if self.max_length < 1:
            raise MinipeftError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position "
                f"after the offset {self.position_offset}"
            )

    @property
    def position_offset(self) -> int:
        """Position of the first token: pad_token_id + 1 in RoBERTa, 0 in the other families."""
        return self.pad_token_id + 1 if self.model_type in POSITIONS_FROM_PADDING else 0

    @property
    def max_length(self) -> int:
        """Length of the longest sequence that the position table holds, in tokens."""
        return self.max_position_embeddings - self.position_offset

    @property
    def embedding_size(self) -> int:
        """Features of a word embedding."""
        return self.hidden_size

    @property
    def num_labels(self) -> int:
        """Number of classes; 1 for regression."""
        return len(self.id2label)

    @property
    def label_kind(self) -> str:
        """The problem type, or what transformers takes for None."""
        return problem_class(self.problem_type, self.num_labels).name

    @property
    def has_own_head(self) -> bool:
        """Whether a classification head in the weights is one for this kind of labels, not for choices, for example."""
        other = tuple(row.architecture for row in PROBLEMS.values()) + OTHER_HEADS
        architecture = problem_row(self.problem_type, self.num_labels).architecture
        return not any(name.endswith(other) and not name.endswith(architecture) for name in self.architectures)

    @property
    def head_dropout_prob(self) -> float:
        """Dropout probability of the classification head."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def with_labels(self, names: list[str], problem_type: str | None = None) -> EncoderConfig:
        """Return the same shape with the classes `names` and transformers' `problem_type`."""
        return dataclasses.replace(self, id2label=dict(enumerate(names)), problem_type=problem_type)

    @classmethod
    def from_dict(cls, content: dict[str, Any], defaults: dict[str, Any]) -> EncoderConfig:
        """Build the config from the content of config.json.

        Args:
            content: The parsed config.json.
            defaults: What transformers assumes for fields that are missing, where it is not this class's default.

        Raises:
            MinipeftError: for a field that would change the mathematics, or a value that no encoder can have.
        """
        for name, value in cls.SUPPORTED.items():
            if content.get(name, value) != value:
                raise MinipeftError(f"{name} {short_repr(content[name])} is not supported; {value!r} is")
        if content.get("quantization_config") is not None:  # the scales would be tensors that nothing uses
            raise MinipeftError("quantization_config is not supported; take a checkpoint that is not quantized")
        known = defaults | {ours: content[theirs] for ours, theirs in cls._json_names().items() if theirs in content}
        known["id2label"] = _read_labels(content)
        architectures = content.get("architectures")
        known["architectures"] = tuple(map(str, architectures)) if isinstance(architectures, list) else ()
        if known.get("problem_type") is None:  # transformers has no problem_type for token classification
            known["problem_type"] = token_problem_type(known["architectures"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json, as transformers reads it."""
        content = {theirs: getattr(self, ours) for ours, theirs in self._json_names().items()}
        if problem_row(self.problem_type, self.num_labels).per_token:
            content["problem_type"] = None  # unknown to transformers, which has another class for it
        content["id2label"] = {str(number): name for number, name in self.id2label.items()}
        content["label2id"] = {name: number for number, name in self.id2label.items()}
        return content

    @classmethod
    def _json_names(cls) -> dict[str, str]:
        """Our field → its name in config.json."""
        names = [f.name for f in dataclasses.fields(cls) if f.name not in cls.NOT_IN_JSON]
        return {name: cls.JSON_NAMES.get(name, name) for name in names}


def _read_labels(content: dict[str, Any]) -> dict[int, str]:
    """Return id2label; as in transformers, num_labels counts where there is none, or one of another length."""
    labels, number = content.get("id2label"), content.get("num_labels")
    if labels is not None and not isinstance(labels, dict):
        raise MinipeftError(f"id2label {short_repr(labels)} is not a table of numbers and names")
    if labels is None or number not in (None, len(labels)):
        number = check_int("num_labels", 2 if number is None else number)
        if number > MOST_LABELS:
            raise MinipeftError(f"num_labels {short_repr(number)} is beyond any model's, {MOST_LABELS}")
        return dict(enumerate(generic_labels(number)))
    return {int(number): str(name) for number, name in sorted(labels.items(), key=lambda item: int(item[0]))}


def generic_labels(number: int) -> list[str]:
    """Return the class names that transformers gives where there are none: LABEL_0, LABEL_1, …"""
    return [f"LABEL_{index}" for index in range(number)]


def check_distinct(labels: Sequence[str], place: str) -> None:
    """Raise for two classes with one name: predictions by name would lose the probability of one of them."""
    if len(set(labels)) < len(labels):
        twice = next(name for name, count in Counter(labels).items() if count > 1)
        raise MinipeftError(f"{place}: the name {short_repr(twice)} stands for two classes. Give each its own name")


def label_order(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Return the index in `names` of each of `labels`; None where the two are not the same classes.

    Names that differ only in case, spaces, "_" or "-" are the same, and LABEL_0 is 0.
    """
    for plain in (str, _plain_label):
        index = {plain(name): number for number, name in enumerate(names)}
        if len(index) == len(names) == len(labels) and index.keys() == {plain(label) for label in labels}:
            return [index[plain(label)] for label in labels]
    return None


def _plain_label(name: str) -> str:
    """Return a class name without case and separators; LABEL_3 is "3"."""
    return re.sub(r"[\s_-]|^LABEL_(?=\d+$)", "", name).casefold()
