"""BitFit (Ben Zaken et al. 2022): biases train, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from minipeft.errors import MinipeftError
from minipeft.methods.adapted import check_targets
from minipeft.model.classifier import SequenceClassifier


@dataclass(frozen=True, repr=False)
class BitFit:
    """Biases of the encoder train: y = W x + b with W frozen (Ben Zaken et al. 2022, section 3).

    Args:
        targets: The linear layers whose biases train; without, every bias does, LayerNorm's too. The paper's subset
            that suffices, b_q and b_m2 (section 4), is ("query", "intermediate").

    Parameters: out_features for each target in each layer, 46,080 for roberta-base with query and intermediate; in all,
    11 hidden_size a layer and hidden_size in the embeddings' LayerNorm, 102,144.

    Without targets, key biases train too, as in the paper, and cannot matter: a key bias adds the same number, q · b,
    to every score of a query, and softmax cancels it. Their gradient is exactly zero in exact arithmetic. In floating
    point it is rounding noise, and AdamW, which divides the gradient by its own size, turns noise into steps: saved key
    biases have moved, without any effect on a prediction.

    Raises:
        MinipeftError: for an unknown target.
    """

    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.targets is not None:
            object.__setattr__(self, "targets", check_targets(self.targets))

    def __repr__(self) -> str:
        return f"BitFit(targets={self.targets})" if self.targets else "BitFit()"


def install(model: SequenceClassifier, method: BitFit) -> None:
    for name, parameter in model.encoder.named_parameters():
        *_, module, leaf = name.split(".")
        if leaf == "bias" and (method.targets is None or module in method.targets):
            parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        raise MinipeftError(
            f"BitFit trains biases, but this {model.config.model_type} model has none in its targets. "
            "Use layernorm or lora"
        )
