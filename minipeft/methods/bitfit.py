"""BitFit (Ben Zaken et al. 2022): the biases train, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from minipeft.model.roberta import SequenceClassifier


@dataclass(frozen=True)
class BitFit:
    """Every bias of the encoder trains: y = W x + b with W frozen (Ben Zaken et al. 2022, section 3).

    Parameters: 11 hidden_size a layer and hidden_size in the embeddings' LayerNorm; 102,144 for roberta-base.

    Key biases are among them, as in the paper, and cannot matter: a key bias adds the same number, q · b, to every
    score of a query, and softmax cancels it. Their gradient is exactly zero in exact arithmetic. In floating point it
    is rounding noise, and AdamW, which divides the gradient by its own size, turns noise into steps: saved key biases
    have moved, without any effect on a prediction.
    """


def install(model: SequenceClassifier, method: BitFit) -> None:
    for name, parameter in model.encoder.named_parameters():
        if name.endswith(".bias"):
            parameter.requires_grad_(True)
