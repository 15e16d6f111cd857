"""Head only: the encoder stays as pretrained, the classification head learns to read it."""

from dataclasses import dataclass

from minipeft.methods import MethodConfig
from minipeft.model.classifier import SequenceClassifier


@dataclass(frozen=True)
class Head(MethodConfig):
    """Nothing of the encoder trains: the baseline that every other method has to beat.

    Parameters: 0, in addition to the head's; 592,130 of these for roberta-base with 2 labels.
    """


def install(model: SequenceClassifier, method: Head) -> None:
    """The head trains in every method, so nothing is left to do."""
