"""GLUE's metrics, and evaluating a model on a split."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Encoding
from torch import Tensor

from minipeft.data.batching import PackedBatch, pack, random_mask, split_by_tokens, stratified_mask
from minipeft.data.buckets import pad_to_bucket
from minipeft.data.tasks import Split, Task
from minipeft.data.tokenizer import Tokenizer
from minipeft.data.tokens import TokenTable
from minipeft.errors import MinipeftError
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.training.distributed import ALONE, Workers

Array = np.ndarray[Any, Any]


def accuracy(predictions: Array, labels: Array) -> float:
    """The part of the predictions that is right."""
    return float(np.mean(predictions == labels))


def f1(predictions: Array, labels: Array) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither exists."""
    true = int(np.sum((predictions == 1) & (labels == 1)))
    total = int(np.sum(predictions == 1) + np.sum(labels == 1))
    return 2 * true / total if total else 0.0


def macro_f1(predictions: Array, labels: Array) -> float:
    """The mean over the classes that occur, on either side, of the F1 of each."""
    size = int(max(predictions.max(), labels.max())) + 1
    true = np.bincount(predictions[predictions == labels], minlength=size)
    total = np.bincount(predictions, minlength=size) + np.bincount(labels, minlength=size)
    return float(np.mean(2 * true[total > 0] / total[total > 0]))


def matthews_correlation(predictions: Array, labels: Array) -> float:
    """Correlation of two binary variables (Matthews 1975); 0 where one of them is constant."""
    if len(np.unique(predictions)) < 2 or len(np.unique(labels)) < 2:
        return 0.0
    return pearson(predictions, labels)


def pearson(predictions: Array, labels: Array) -> float:
    """Linear correlation; 0 where one side is constant."""
    x, y = (side.astype(np.float64) - side.astype(np.float64).mean() for side in (predictions, labels))
    norm = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / norm if norm else 0.0


def spearman(predictions: Array, labels: Array) -> float:
    """Correlation of the ranks; ties share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


def sequence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over sequences: cross-entropy, or the squared error where there is one label (regression).

    logits (num_sequences, num_labels) float32, labels (num_sequences,) → a scalar. A label of -100, or NaN for
    regression, is that of a dummy (data/buckets.py), which counts for nothing.
    """
    if logits.shape[1] == 1:
        return torch.where(labels.isnan(), 0.0, logits[:, 0] - labels).square().sum()
    return F.cross_entropy(logits, labels, reduction="sum")


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: what training and evaluation draw their batches from."""

    split: Split  # its task and labels; the texts need not be there any more
    sequences: Sequence[Any]  # lists of int or tokenizers.Encoding, as `pack` takes them
    lengths: Sequence[int]

    def __len__(self) -> int:
        return len(self.sequences)

    @classmethod
    def unlabelled(cls, task: Task, sequences: list[Any]) -> Encoded:
        """Texts to predict, without labels."""
        return cls(Split(task, [], None, []), sequences, [len(sequence.ids) for sequence in sequences])

    def part(self, chosen: Sequence[int]) -> Encoded:
        """The examples where `chosen` is true, in their order."""
        indices = array("q", (index for index, one in enumerate(chosen) if one))
        labels = array("d" if self.split.task.is_regression else "q", (self.split.labels[index] for index in indices))
        lengths = array("i", (self.lengths[index] for index in indices))
        return Encoded(Split(self.split.task, [], None, labels), _Chosen(self.sequences, indices), lengths)

    def batch(self, indices: list[int], config: EncoderConfig) -> PackedBatch:
        """The examples at `indices`, packed with their labels."""
        return pack(
            [self.sequences[index] for index in indices], [self.split.labels[index] for index in indices], config=config
        )


class _Chosen(Sequence[Any]):
    """Some of many sequences, which stay where they are."""

    def __init__(self, sequences: Sequence[Any], indices: Sequence[int]) -> None:
        self.sequences, self.indices = sequences, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.sequences[self.indices[index]]


def hold_out(examples: Encoded, fraction: float, seed: int) -> tuple[Encoded, Encoded]:
    """Split examples at random → (the training examples, the held-out ones: a `fraction` of all).

    The split is a function of the seed, and stratified by class if `task.stratified`. Raises MinipeftError if one of
    the two would be empty.
    """
    task, labels = examples.split.task, examples.split.labels
    if task.stratified and not task.is_regression:
        mask = stratified_mask([int(label) for label in labels], fraction, seed)
    else:
        mask = random_mask(len(examples), fraction, seed)
    if not 0 < round(len(examples) * fraction) < len(examples) or not 0 < sum(mask) < len(examples):
        raise MinipeftError(
            f"--holdout {fraction:g} of {len(examples)} training examples is {'all' if fraction > 0.5 else 'none'}; "
            "choose another fraction"
        )
    return examples.part([not one for one in mask]), examples.part(mask)


def encode_split(
    task: Task, chunks: Iterable[Split], tokenizer: Tokenizer, max_length: int, config: EncoderConfig
) -> Encoded:
    """Tokenize a split chunk by chunk; what stays in memory is 12 bytes an example and its label.

    A tokenizer with more entries than the model's vocabulary is refused where a text uses one.
    """
    labels: array[Any] = array("d" if task.is_regression else "q")

    def encodings() -> Iterator[Encoding]:
        for chunk in chunks:
            yield from tokenizer.encode_full(chunk.texts, chunk.pairs, max_length)
            labels.extend(chunk.labels)

    sequences = TokenTable(_checked(encodings(), tokenizer, config), with_types=config.type_vocab_size > 1)
    return Encoded(Split(task, [], None, labels), sequences, sequences.lengths)


def _checked(encodings: Iterable[Encoding], tokenizer: Tokenizer, config: EncoderConfig) -> Iterator[Encoding]:
    for row, encoding in enumerate(encodings):
        if not encoding.ids:
            raise MinipeftError(
                f"{tokenizer.folder}: the tokenizer gives row {row} no token, not even a special one; "
                "use the model's tokenizer"
            )
        if max(encoding.ids) >= config.vocab_size:
            raise MinipeftError(
                f"{tokenizer.folder}: the tokenizer gives row {row} the token id {max(encoding.ids)}, "
                f"outside the model's vocabulary of {config.vocab_size}; use the model's tokenizer"
            )
        if config.type_vocab_size > 1 and max(encoding.type_ids) >= config.type_vocab_size:
            raise MinipeftError(
                f"{tokenizer.folder}: the tokenizer gives row {row} the token type {max(encoding.type_ids)}, "
                f"outside the model's {config.type_vocab_size}; use the model's tokenizer"
            )
        yield encoding


@torch.inference_mode()
def predict_logits(
    model: SequenceClassifier, examples: Encoded, max_tokens: int, device: str, workers: Workers = ALONE
) -> Tensor:
    """Logits (examples, num_labels), float32 on the host, in the order of the examples, whichever worker has them."""
    was_training = model.training
    model.eval()
    logits = torch.zeros(len(examples), model.config.num_labels)  # so that the workers' tables add up to the whole
    for indices in split_by_tokens(workers.share(range(len(examples)), examples.lengths), examples.lengths, max_tokens):
        batch = pad_to_bucket(pack([examples.sequences[index] for index in indices], config=model.config), model.config)
        logits[indices] = model(batch.to(device))[: len(indices)].cpu()
    model.train(was_training)
    return workers.sum(logits)


def evaluate(
    model: SequenceClassifier, examples: Encoded, max_tokens: int, device: str, workers: Workers = ALONE
) -> dict[str, float]:
    """eval_loss, the mean over the split's sequences, and the task's metrics by name."""
    return score(
        predict_logits(model, examples, max_tokens, device, workers), examples.split.labels, examples.split.task
    )


def score(logits: Tensor, labels: Sequence[int] | Sequence[float], task: Task) -> dict[str, float]:
    """eval_loss and the task's metrics of logits (examples, num_labels) against the labels."""
    expected = torch.tensor(labels, dtype=torch.float32 if task.is_regression else torch.int64)
    loss = sequence_loss(logits, expected).item() / len(logits)
    predictions = logits[:, 0] if task.is_regression else logits.argmax(dim=1)
    values = {name: METRICS[name](predictions.numpy(), expected.numpy()) for name in task.metrics}
    return {"eval_loss": loss, **values}
