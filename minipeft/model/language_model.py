"""A masked language model: the encoder with the head that predicts masked tokens (Devlin et al. 2019, section 3.1)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of, load_config
from minipeft.model.layers import LayerNorm, Linear
from minipeft.model.pretrained import fill_from_checkpoint
from minipeft.model.roberta import Encoder


class MaskedLanguageModel(nn.Module):
    """Encoder and language-model head: E LayerNorm(gelu(dense(x))) + bias, where E is the word embeddings."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, batch: PackedBatch, masked: Tensor | None = None) -> Tensor:
        """Return the logits at the token indices `masked`, or at every token: (tokens, vocab_size), float32."""
        x = self.encoder(batch)
        if masked is not None:  # the product with E is the largest of all, and most tokens have no loss
            x = x.index_select(0, masked)
        x = self.layer_norm(F.gelu(self.dense(x)))
        return F.linear(x, self.encoder.word_embeddings.weight.to(x.dtype), self.bias.to(x.dtype)).float()


def load_language_model(folder: Path) -> MaskedLanguageModel:
    """Load a checkpoint with its masked-language-model head; a missing head is initialized, and a log line says so."""
    config = load_config(folder)
    family = family_of(config)
    if not family.language_model or config.hidden_act != "gelu":
        raise MinipeftError(
            f"{folder}: model_type {config.model_type} with hidden_act {config.hidden_act} cannot be pretrained here; "
            "use a RoBERTa or BERT with gelu"
        )
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    return fill_from_checkpoint(model, config, folder)
