"""BitFit (Ben Zaken et al. 2022): the biases are trained, and nothing else.

It adds no module and no parameter: `install` chooses which parameters require a gradient. So an encoder without biases
(ModernBERT) raises, and peft has no file format for it.
"""

from dataclasses import dataclass

from minipeft.errors import MinipeftError
from minipeft.methods import LayerMethodConfig, check_settings
from minipeft.methods.adapted import check_targets
from minipeft.model.classifier import SequenceClassifier


@dataclass(frozen=True)
class BitFit(LayerMethodConfig):
    """Train the biases of the encoder: y = W x + b with W frozen (Ben Zaken et al. 2022, section 3).

    Args:
        targets: The linear layers whose biases are trained; None for every bias, those of LayerNorm too. The paper's
            smaller subset, b_q and b_m2 (section 4), is ("query", "intermediate").

    Parameters: out_features for each target in each layer, 46,080 for roberta-base with query and intermediate. Without
    targets 11 · hidden_size in each layer and hidden_size in the LayerNorm of the embeddings, 102,144.

    Without targets, key biases are trained too, as in the paper, but have no effect: a key bias adds the same number,
    q · b, to every score of a query, and softmax cancels it. Their gradient is zero in exact arithmetic. In floating
    point it is rounding noise. AdamW divides the gradient by its own size, so the noise becomes steps: saved key biases
    differ from the pretrained ones, and no prediction changes.

    Raises:
        MinipeftError: for an unknown target.
    """

    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.targets is not None:
            check_settings(self, targets=check_targets)


def install(model: SequenceClassifier, method: BitFit) -> None:
    """Unfreeze the biases of a frozen model."""
    # By name and not by module: LayerNorms, linear layers and projections of every family call it "bias".
    for name, parameter in model.encoder.named_parameters():
        *_, module, leaf = name.split(".")  # layers.0.query.bias → query, bias
        if leaf == "bias" and (method.targets is None or module in method.targets):
            parameter.requires_grad_(True)
    # Without this, the run would train its head alone and report it as BitFit.
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        raise MinipeftError(
            f"BitFit trains biases, but this {model.config.model_type} model has none in its targets. "
            "Use layernorm or lora"
        )
