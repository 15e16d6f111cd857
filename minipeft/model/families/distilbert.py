"""DistilBERT (Sanh et al. 2019): half of BERT's layers, without token types and without a pooler.

embeddings → layers (as in roberta.py, but for one dropout) → [CLS] of each sequence → head → logits
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.config import EncoderConfig
from minipeft.model.families import Family
from minipeft.model.layers import Embedding, LayerNorm, dropout
from minipeft.model.roberta import ClassificationHead, Encoder, EncoderLayer


@dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """The shape of a DistilBERT; the defaults are distilbert-base's. Its config.json has shorter names."""

    model_type: str = "distilbert"
    vocab_size: int = 30522
    num_hidden_layers: int = 6
    max_position_embeddings: int = 512
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = 0.2

    JSON_NAMES: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    }
    NOT_IN_JSON: ClassVar[tuple[str, ...]] = ("layer_norm_eps", "type_vocab_size")


class DistilBertLayer(EncoderLayer):
    """x → a = LayerNorm(x + attention(x));  LayerNorm(a + W₂ f(W₁ a)), without dropout on the attention's output."""

    def after_attention(self, x: Tensor, attended: Tensor, probability: float) -> Tensor:
        """The part of the layer that sees each token alone: (…, hidden_size) twice → the same shape."""
        x = self.attention_layer_norm(x + self.output(attended))
        inner = self.activation(self.intermediate(x))  # (…, intermediate_size)
        return self.output_layer_norm(x + dropout(self.ffn_output(inner), probability))


class DistilBertEncoder(Encoder):
    """Embeddings of words and positions, and layers."""

    def add_embeddings(self, config: EncoderConfig) -> None:
        """Create the modules that `embed` uses."""
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def make_layer(self, config: EncoderConfig, number: int) -> nn.Module:
        """Create layer `number`, counted from 0."""
        return DistilBertLayer(config)

    def embed(self, words: Tensor, batch: PackedBatch) -> Tensor:
        """Word embeddings (total_tokens, hidden_size) → the first layer's input, of the same shape."""
        x = self.layer_norm((words + self.position_embeddings(batch.position_ids)).to(self.dtype))
        return dropout(x, self.config.hidden_dropout_prob, self.training)


class DistilBertHead(ClassificationHead):
    """out_proj(dropout(relu(dense(x)))), in float32."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.input_dropout_prob, self.activation = 0.0, torch.relu


DISTILBERT = Family(
    architecture="DistilBert",
    prefix="distilbert.",
    names={
        "word_embeddings": "embeddings.word_embeddings",
        "position_embeddings": "embeddings.position_embeddings",
        "layer_norm": "embeddings.LayerNorm",
        "layers.{i}.query": "transformer.layer.{i}.attention.q_lin",
        "layers.{i}.key": "transformer.layer.{i}.attention.k_lin",
        "layers.{i}.value": "transformer.layer.{i}.attention.v_lin",
        "layers.{i}.output": "transformer.layer.{i}.attention.out_lin",
        "layers.{i}.attention_layer_norm": "transformer.layer.{i}.sa_layer_norm",
        "layers.{i}.intermediate": "transformer.layer.{i}.ffn.lin1",
        "layers.{i}.ffn_output": "transformer.layer.{i}.ffn.lin2",
        "layers.{i}.output_layer_norm": "transformer.layer.{i}.output_layer_norm",
    },
    head_names={"dense": "pre_classifier", "out_proj": "classifier"},
    head_modules=("pre_classifier", "classifier"),
    config_class="families.distilbert:DistilBertConfig",
    encoder_class="families.distilbert:DistilBertEncoder",
    head_class="families.distilbert:DistilBertHead",
)
