"""An encoder of any family with its classification head."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of
from minipeft.problems import problem_row


def new_classifier(config: EncoderConfig) -> SequenceClassifier:
    """Return the model for a config's kind of labels: a SequenceClassifier, or a TokenClassifier."""
    per_token = problem_row(config.problem_type, config.num_labels).per_token
    name = "token_classifier:TokenClassifier" if per_token else "classifier:SequenceClassifier"
    return cast("type[SequenceClassifier]", resolve_name(f"minipeft.model.{name}"))(config)


class SequenceClassifier(nn.Module):
    """Encoder and classification head: logits = head(hidden state of each sequence's first token)  (Liu et al. 2019).

    Some families' heads read the mean over the tokens. New weights have torch's initialization; `load_pretrained` loads
    a checkpoint's.

    Args:
        config: The shape; its model_type names the family.

    Attributes:
        method: The config of the method that `apply` installed, or None.
        folder: The folder of the pretrained weights, or None.
        new_tensors: Names of the parameters that the pretrained weights lack, whose values are random.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        family = family_of(config)
        self.config = config
        self.encoder = family.encoder(config)
        self.head = family.head(config)
        self.method: Any = None
        self.folder: Path | None = None
        self.new_tensors: tuple[str, ...] = ()

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return the logits (num_sequences, num_labels), float32, of a packed batch, in the order given to pack."""
        return self.head(self.features(batch) if batch.features is None else batch.features)

    def features(self, batch: PackedBatch) -> Tensor:
        """Return what the head reads of a packed batch, (num_sequences, hidden_size)."""
        return self.encoder.pooled(batch)
