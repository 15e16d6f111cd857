"""Prefix tuning (Li and Liang 2021), on an encoder: in every layer, trained keys and values that all tokens see."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import check_int
from minipeft.methods.adapted import check_settings
from minipeft.methods.peft_format import PeftFormat
from minipeft.methods.virtual_tokens import check_length, check_number, read_fields, write_fields
from minipeft.model.attention.grouped import Prefix
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig


@dataclass(frozen=True)
class PrefixTuning:
    """softmax(Q [P_K; K]ᵀ / √head_size) [P_V; V]: P_K and P_V train, in every layer (Li and Liang 2021, equation 3).

    Args:
        num_virtual_tokens: The rows of P_K and P_V.

    They train as they are, without the paper's MLP, as in P-tuning v2 (Liu et al. 2022), and start normal with standard
    deviation 1, as in peft. A text's positions count from num_virtual_tokens on, as if the prefix stood before it, so
    num_virtual_tokens + length must fit the position table; max_tokens, which limits a batch, does not count them.
    Parameters: num_virtual_tokens · layers · 2 · hidden_size; 368,640 for roberta-base with 20.

    Raises:
        MinipeftError: for a number below 1; the model raises it for a sequence that does not fit.
    """

    num_virtual_tokens: int = 20

    def __post_init__(self) -> None:
        check_settings(self, num_virtual_tokens=check_int)


class LayerPrefixes(nn.Module):
    """P_K and P_V of every layer, float32, side by side in one tensor as in peft's files.

    prompt_embeddings: (num_virtual_tokens, layers · 2 · hidden_size).
    """

    def __init__(self, num_virtual_tokens: int, config: EncoderConfig, device: torch.device) -> None:
        super().__init__()
        size = config.num_hidden_layers * 2 * config.hidden_size
        self.prompt_embeddings = nn.Parameter(torch.randn(num_virtual_tokens, size, device=device))
        self.config = config

    def forward(self, batch: PackedBatch, words: Tensor, prefixes: Any) -> tuple[PackedBatch, Tensor, list[Prefix]]:
        """The batch, its positions moved on, and a pair (num_virtual_tokens, hidden_size) for each layer."""
        number = len(self.prompt_embeddings)
        check_length(batch, number, self.config)
        batch = dataclasses.replace(batch, position_ids=batch.position_ids + number)
        parts = self.prompt_embeddings.unflatten(1, (-1, self.config.hidden_size)).unbind(1)  # key, value, key, …
        return batch, words, list(zip(parts[::2], parts[1::2], strict=True))


def install(model: SequenceClassifier, method: PrefixTuning) -> None:
    check_number(method.num_virtual_tokens, model.config)
    device = model.encoder.word_embeddings.weight.device
    model.encoder.virtual_tokens = LayerPrefixes(method.num_virtual_tokens, model.config, device)


# peft saves what its MLP (prefix_projection, encoder_hidden_size) makes of the prefix, so these change nothing here.
KNOWN = ("prefix_projection", "encoder_hidden_size", "init_weights")


def to_peft(method: PrefixTuning, config: EncoderConfig) -> dict[str, Any]:
    """peft's PrefixTuningConfig fields."""
    return write_fields(method.num_virtual_tokens, config) | {"encoder_hidden_size": config.hidden_size}


def from_peft(content: dict[str, Any], config: EncoderConfig) -> PrefixTuning:
    """The config that peft's PrefixTuningConfig fields describe."""
    return PrefixTuning(read_fields(content, config, KNOWN))


PEFT = PeftFormat(
    to_peft,
    from_peft,
    names={"encoder.virtual_tokens.prompt_embeddings": "prompt_embeddings"},
    prefix="base_model.",
)
