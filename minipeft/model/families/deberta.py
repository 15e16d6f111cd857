"""DeBERTa-v3 (He et al. 2021 and 2023): no absolute positions; attention sees the distance of every pair of tokens.

It differs from RoBERTa in the embeddings (words alone), in the scores of the attention (disentangled.py), in one table
of relative positions that all layers share, and in the head.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch, to_device
from minipeft.errors import MinipeftError, check_choice, short_repr
from minipeft.model.attention.disentangled import RelativePlan, attend_disentangled, bucket
from minipeft.model.attention.grouped import Prefix, group_by_length
from minipeft.model.config import HIDDEN_ACTIVATIONS, EncoderConfig
from minipeft.model.families import BERT_NAMES, LAYER_NORMS, Family
from minipeft.model.layers import ACTIVATIONS, Embedding, LayerNorm, dropout
from minipeft.model.roberta import ClassificationHead, Encoder, EncoderLayer


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """The shape of a DeBERTa-v3 encoder; the defaults are deberta-v3-base's.

    Attributes:
        position_buckets: Half the number of relative positions that have an embedding.
        max_relative_positions: Distance from which all tokens share the last bucket; -1 means max_position_embeddings.
        pooler_dropout: Dropout probability before the head's first layer.
        pooler_hidden_act: Activation after the head's first layer, one of HIDDEN_ACTIVATIONS.
    """

    model_type: str = "deberta-v2"
    vocab_size: int = 128100
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-7
    position_buckets: int = 256
    max_relative_positions: int = -1
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"

    JSON_NAMES: ClassVar[dict[str, str]] = {"classifier_dropout": "cls_dropout"}
    SUPPORTED: ClassVar[dict[str, Any]] = {
        "relative_attention": True,
        "position_biased_input": False,
        "share_att_key": True,
        "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
        "conv_kernel_size": 0,
    }
    # What transformers assumes for fields that are missing: an encoder that is not supported here.
    ASSUMED: ClassVar[dict[str, Any]] = {
        "relative_attention": False,
        "position_biased_input": True,
        "share_att_key": False,
        "pos_att_type": None,
        "norm_rel_ebd": "none",
        "position_buckets": -1,
    }
    SIZES: ClassVar[tuple[str, ...]] = (
        *(name for name in EncoderConfig.SIZES if name != "type_vocab_size"),
        "position_buckets",
    )
    PROBABILITIES: ClassVar[tuple[str, ...]] = (*EncoderConfig.PROBABILITIES, "pooler_dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pooler_hidden_act", self.pooler_hidden_act, HIDDEN_ACTIVATIONS)
        if not isinstance(self.max_relative_positions, int):
            raise MinipeftError(
                f"max_relative_positions {short_repr(self.max_relative_positions)} is not a whole number"
            )
        if not 2 <= self.position_buckets < 2 * (self.largest_distance - 1):
            raise MinipeftError(
                f"position_buckets {self.position_buckets} is less than 2, or too large for the "
                f"{self.largest_distance} relative positions"
            )

    @property
    def largest_distance(self) -> int:
        """max_relative_positions, or what it stands for."""
        return self.max_relative_positions if self.max_relative_positions >= 1 else self.max_position_embeddings

    @classmethod
    def from_dict(cls, content: dict[str, Any], defaults: dict[str, Any]) -> EncoderConfig:
        """Build the config from the content of config.json; see `EncoderConfig.from_dict`."""
        content = cls.ASSUMED | content
        kinds = content["pos_att_type"]
        kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
        content["pos_att_type"] = sorted(kinds) if isinstance(kinds, list) else kinds  # "p2c|c2p" or ["p2c", "c2p"]
        config = super().from_dict(content, defaults)
        for name, value in {
            "embedding_size": config.hidden_size,
            "pooler_hidden_size": config.hidden_size,
            "attention_head_size": config.hidden_size // config.num_attention_heads,
        }.items():
            if content.get(name, value) != value:
                raise MinipeftError(f"{name} {short_repr(content[name])} is not supported; {value} is")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json, as transformers reads it."""
        return super().to_dict() | self.SUPPORTED


class DebertaLayer(EncoderLayer):
    """RoBERTa's layer with disentangled attention: `query` and `key` also project the relative embeddings."""

    def forward(self, x: Tensor, plan: Any, first_tokens: Tensor | None = None, prefix: Prefix | None = None) -> Tensor:
        """See `EncoderLayer.forward`; a prefix has no distance to any token and is not supported."""
        config = self.config
        assert isinstance(plan, RelativePlan) and prefix is None
        hidden_dropout = config.hidden_dropout_prob if self.training else 0.0
        attention_dropout = config.attention_probs_dropout_prob if self.training else 0.0
        relative = dropout(plan.embeddings, hidden_dropout)  # (rows, hidden_size)
        key, value = self.key(x), self.value(x)  # (total_tokens, hidden_size)
        if first_tokens is not None:
            x = x.index_select(0, first_tokens)  # (num_sequences, hidden_size)
        attended = attend_disentangled(
            self.query(x),
            key,
            value,
            self.query(relative),
            self.key(relative),
            plan,
            config.num_attention_heads,
            attention_dropout,
            first_only=first_tokens is not None,
        )
        return self.after_attention(x, attended, hidden_dropout)


class DebertaEncoder(Encoder):
    """Word embeddings, and one embedding per bucket of relative positions, which all layers share."""

    config: DebertaConfig

    def add_embeddings(self, config: EncoderConfig) -> None:
        """Create the modules of the embeddings."""
        assert isinstance(config, DebertaConfig)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.relative_embeddings = Embedding(2 * config.position_buckets, config.hidden_size)
        self.relative_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def make_layer(self, config: EncoderConfig, number: int) -> nn.Module:
        """Create layer `number`, counted from 0."""
        return DebertaLayer(config)

    def embed(self, words: Tensor, batch: PackedBatch) -> Tensor:
        """Word embeddings → the first layer's input, both (total_tokens, hidden_size)."""
        return dropout(self.layer_norm(words.to(self.dtype)), self.config.hidden_dropout_prob, self.training)

    def plan(self, batch: PackedBatch, num_virtual_tokens: int) -> RelativePlan:
        """Group the sequences, and normalize the relative embeddings of the distances that occur."""
        config, device = self.config, batch.cu_seqlens.device
        if batch.attention_mask is not None:  # of an exported program, for which no distance is known to occur
            from minipeft.model.attention.padded import plan_padded

            distances = torch.arange(1 - batch.max_seqlen, batch.max_seqlen)
            rows = bucket(distances, config.position_buckets, config.largest_distance) + config.position_buckets
            embeddings = self.relative_layer_norm(self.relative_embeddings.weight)
            return RelativePlan(plan_padded(batch.attention_mask), embeddings, rows)
        groups = group_by_length(batch.lengths, device, self.dtype)
        longest = max(group.longest for group in groups.groups)
        distances = torch.arange(1 - longest, longest)
        buckets = bucket(distances, config.position_buckets, config.largest_distance)  # ascending
        first, last = int(buckets[0]), int(buckets[-1])
        table = self.relative_embeddings.weight.narrow(0, config.position_buckets + first, last - first + 1)
        embeddings = self.relative_layer_norm(table.to(self.dtype))  # (rows, hidden_size)
        return RelativePlan(groups, embeddings, to_device(buckets - first, device))


class DebertaHead(ClassificationHead):
    """out_proj(dropout(f(dense(dropout(x))))), in float32; dense and f, pooler_hidden_act, are DeBERTa's pooler."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert isinstance(config, DebertaConfig)
        self.input_dropout_prob = config.pooler_dropout
        self.activation = ACTIVATIONS[config.pooler_hidden_act]


DEBERTA = Family(
    architecture="DebertaV2",
    prefix="deberta.",
    names={
        "word_embeddings": "embeddings.word_embeddings",
        "layer_norm": "embeddings.LayerNorm",
        "relative_embeddings": "encoder.rel_embeddings",
        "relative_layer_norm": "encoder.LayerNorm",
        **{ours: theirs for ours, theirs in BERT_NAMES.items() if "{i}" in ours},
        "layers.{i}.query": "encoder.layer.{i}.attention.self.query_proj",
        "layers.{i}.key": "encoder.layer.{i}.attention.self.key_proj",
        "layers.{i}.value": "encoder.layer.{i}.attention.self.value_proj",
    },
    head_names={"dense": "pooler.dense", "out_proj": "classifier"},
    head_modules=("pooler", "classifier"),
    config_class="families.deberta:DebertaConfig",
    encoder_class="families.deberta:DebertaEncoder",
    head_class="families.deberta:DebertaHead",
    defaults={"hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24, "intermediate_size": 6144},
    layer_norms=LAYER_NORMS | {"relative": "relative_layer_norm"},
    saved_per_token=28.0,
    unsupported={
        "prefix_tuning": "its attention needs a position for each key, which a prefix does not have",
        "--cuda-graphs": "the host plans the attention of each batch",
    },
)
