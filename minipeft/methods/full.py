"""Full fine-tuning: every parameter trains."""

from dataclasses import dataclass

from minipeft.methods import LayerMethodConfig
from minipeft.model.classifier import SequenceClassifier


@dataclass(frozen=True)
class Full(LayerMethodConfig):
    """Every parameter of the encoder trains (Devlin et al. 2019, section 3.2).

    Parameters: all of the encoder's; 124,055,040 for roberta-base.
    """


def install(model: SequenceClassifier, method: Full) -> None:
    model.encoder.requires_grad_(True)
