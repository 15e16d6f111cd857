"""ELECTRA's discriminator (Clark et al. 2020): BERT's layers behind embeddings that may be narrower than they are.

embeddings (embedding_size) → projection to hidden_size → layers → [CLS] of each sequence → head → logits
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.config import EncoderConfig
from minipeft.model.families import BERT_NAMES, Family
from minipeft.model.layers import Linear
from minipeft.model.roberta import ClassificationHead, Encoder


@dataclass(frozen=True)
class ElectraConfig(EncoderConfig):
    """The shape of an ELECTRA; the defaults are electra-small-discriminator's.

    Attributes:
        embedding_size: Features of an embedding; where it is not hidden_size, a linear layer projects to that.
    """

    model_type: str = "electra"
    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-12

    SIZES: ClassVar[tuple[str, ...]] = (*EncoderConfig.SIZES, "embedding_size")


class ElectraEncoder(Encoder):
    """Embeddings, their projection, and layers."""

    def add_embeddings(self, config: EncoderConfig) -> None:
        """Create the modules that `embed` uses."""
        super().add_embeddings(config)
        same = config.embedding_size == config.hidden_size
        self.embeddings_project = nn.Identity() if same else Linear(config.embedding_size, config.hidden_size)

    def embed(self, words: Tensor, batch: PackedBatch) -> Tensor:
        """Word embeddings (total_tokens, embedding_size) → the first layer's input (total_tokens, hidden_size)."""
        return self.embeddings_project(super().embed(words, batch))


class ElectraHead(ClassificationHead):
    """out_proj(dropout(gelu(dense(dropout(x))))), in float32."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.activation = F.gelu


ELECTRA = Family(
    architecture="Electra",
    prefix="electra.",
    names=BERT_NAMES | {"embeddings_project": "embeddings_project"},
    head_names={"dense": "classifier.dense", "out_proj": "classifier.out_proj"},
    head_modules=("classifier",),
    config_class="families.electra:ElectraConfig",
    encoder_class="families.electra:ElectraEncoder",
    head_class="families.electra:ElectraHead",
    projections=("embeddings_project",),
)
