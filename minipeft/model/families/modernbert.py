"""ModernBERT (Warner et al. 2024): rotary positions, local and global attention in turn, GeGLU, hardly any biases.

It differs from RoBERTa in every part of a layer, and normalizes the input of each sublayer, not the sum after it:

    x → a = x + attention(LayerNorm(x));  a + W₂ (f(u) ⊙ g),  (u, g) = W₁ LayerNorm(a)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, check_choice, short_repr
from minipeft.model.attention import Plan, attend, plan_attention
from minipeft.model.attention.grouped import Groups, Prefix
from minipeft.model.attention.rotary import angles, rotate
from minipeft.model.config import HIDDEN_ACTIVATIONS, EncoderConfig
from minipeft.model.families import LAYER_NORMS, Family
from minipeft.model.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, dropout
from minipeft.model.roberta import Encoder, EncoderLayer


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """The shape of a ModernBERT; the defaults are ModernBERT-base's.

    Attributes:
        hidden_dropout_prob: Dropout probability inside the feed-forward network.
        attention_probs_dropout_prob: Dropout probability of the attention weights and of the attention's output.
        embedding_dropout: Dropout probability after the embeddings.
        local_attention: In a local layer a token sees local_attention // 2 tokens on each side.
        global_attn_every_n_layers: Layers 0, n, 2n, … see all tokens, the others are local.
        global_rope_theta, local_rope_theta: Bases of the rotary positions' frequencies in the two kinds of layers.
        attention_bias, mlp_bias, norm_bias, classifier_bias: Whether these parts have biases.
        classifier_pooling: What the head reads: "cls", the first token, or "mean" over all tokens.
        classifier_activation: Activation of the head, one of HIDDEN_ACTIVATIONS.
        bos_token_id, eos_token_id, cls_token_id, sep_token_id, initializer_cutoff_factor: Not used here; kept for
            servers, which require them in config.json.
    """

    model_type: str = "modernbert"
    vocab_size: int = 50368
    num_hidden_layers: int = 22
    intermediate_size: int = 1152
    max_position_embeddings: int = 8192
    pad_token_id: int = 50283
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout: float | None = 0.0
    embedding_dropout: float = 0.0
    local_attention: int = 128
    global_attn_every_n_layers: int = 3
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    classifier_bias: bool = False
    classifier_pooling: str = "cls"
    classifier_activation: str = "gelu"
    bos_token_id: int | None = 50281
    eos_token_id: int | None = 50282
    cls_token_id: int | None = 50281
    sep_token_id: int | None = 50282
    initializer_cutoff_factor: float = 2.0

    JSON_NAMES: ClassVar[dict[str, str]] = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout_prob": "mlp_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }
    NOT_IN_JSON: ClassVar[tuple[str, ...]] = ("type_vocab_size",)
    SUPPORTED: ClassVar[dict[str, Any]] = {"rope_scaling": None}
    SIZES: ClassVar[tuple[str, ...]] = (*EncoderConfig.SIZES, "local_attention", "global_attn_every_n_layers")
    PROBABILITIES: ClassVar[tuple[str, ...]] = (*EncoderConfig.PROBABILITIES, "embedding_dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("classifier_pooling", self.classifier_pooling, ("cls", "mean"))
        check_choice("classifier_activation", self.classifier_activation, HIDDEN_ACTIVATIONS)
        for name in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"):
            if not isinstance(getattr(self, name), bool):
                raise MinipeftError(f"{name} {short_repr(getattr(self, name))} is not true or false")
        for name in ("global_rope_theta", "local_rope_theta"):
            theta = getattr(self, name)
            if not isinstance(theta, (int, float)) or not 1 < theta < math.inf:
                raise MinipeftError(f"{name} {short_repr(theta)} is not a number above 1")
        if self.hidden_size // self.num_attention_heads % 2 or self.local_attention < 2:
            raise MinipeftError("rotary positions need an even size of the heads, and local_attention 2 or more")

    @classmethod
    def from_dict(cls, content: dict[str, Any], defaults: dict[str, Any]) -> EncoderConfig:
        """Build the config from the content of config.json; see `EncoderConfig.from_dict`.

        Files of transformers 5 have `layer_types` and `rope_parameters`, older ones the fields of this class.
        """
        content = dict(content)
        if (kinds := content.get("layer_types")) is not None:
            distance = next((i for i, kind in enumerate(kinds) if i and kind == "full_attention"), len(kinds))
            expected = ["sliding_attention" if i % distance else "full_attention" for i in range(len(kinds))]
            if not kinds or kinds != expected or len(kinds) != content.get("num_hidden_layers", cls.num_hidden_layers):
                raise MinipeftError(f"layer_types {short_repr(kinds)} is not supported; global attention every n-th is")
            content["global_attn_every_n_layers"] = distance
        rope = content.get("rope_parameters") or {}
        for name, kind in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
            parameters: Mapping[str, Any] = rope.get(kind) or {}
            if parameters.get("rope_type", "default") != "default":
                raise MinipeftError(f"rope_type {short_repr(parameters['rope_type'])} is not supported; 'default' is")
            if "rope_theta" in parameters:
                content[name] = parameters["rope_theta"]
        return super().from_dict(content, defaults)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json, with `num_labels`, which text-embeddings-inference reads here."""
        return super().to_dict() | {"num_labels": self.num_labels}


class LayerPlan(NamedTuple):
    """What the layers of one kind, global or local, share for one batch.

    Attributes:
        attention: How the sequences lie, and how far a token sees.
        cos, sin: (total_tokens, 1, head_size / 2), of each token's rotary angles.
    """

    attention: Plan
    cos: Tensor
    sin: Tensor


class ModernBertLayer(EncoderLayer):
    """x → a = x + attention(LayerNorm(x));  a + W₂ (f(u) ⊙ g),  (u, g) = W₁ LayerNorm(a)."""

    config: ModernBertConfig

    def __init__(self, config: ModernBertConfig, number: int) -> None:
        nn.Module.__init__(self)
        hidden, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.config = config
        self.activation = ACTIVATIONS[config.hidden_act]
        self.is_local = number % config.global_attn_every_n_layers != 0
        # The first layer's input, the embeddings, is normalized already.
        norm = LayerNorm(hidden, eps=eps, bias=config.norm_bias) if number else nn.Identity()
        self.attention_layer_norm = norm  # type: ignore[assignment]
        self.qkv = Linear(hidden, 3 * hidden, bias=config.attention_bias)
        self.output = Linear(hidden, hidden, bias=config.attention_bias)
        self.output_layer_norm = LayerNorm(hidden, eps=eps, bias=config.norm_bias)
        self.intermediate = Linear(hidden, 2 * inner, bias=config.mlp_bias)
        self.ffn_output = Linear(inner, hidden, bias=config.mlp_bias)

    def forward(self, x: Tensor, plan: Any, first_tokens: Tensor | None = None, prefix: Prefix | None = None) -> Tensor:
        """See `EncoderLayer.forward`; a prefix has no position to rotate its keys by and is not supported."""
        assert prefix is None
        config, (attention, cos, sin) = self.config, plan[self.is_local]
        attention_dropout = config.attention_probs_dropout_prob if self.training else 0.0
        qkv = self.qkv(self.attention_layer_norm(x))  # (total_tokens, 3 · hidden_size)
        query, key, value = rotate(qkv, cos, sin)  # each (total_tokens, hidden_size)
        if first_tokens is not None:
            x, query = (rows.index_select(0, first_tokens) for rows in (x, query))  # (num_sequences, hidden_size)
        attended = attend(
            query,
            key,
            value,
            attention,
            config.num_attention_heads,
            attention_dropout,
            first_only=first_tokens is not None,
        )
        return self.after_attention(x, attended, attention_dropout)

    def after_attention(self, x: Tensor, attended: Tensor, probability: float) -> Tensor:
        """Compute what follows attention, token by token: x and `attended`, both (…, hidden_size) → the same shape."""
        x = x + dropout(self.output(attended), probability)
        u, gate = self.intermediate(self.output_layer_norm(x)).chunk(2, dim=-1)  # each (…, intermediate_size)
        inner = dropout(self.activation(u) * gate, self.config.hidden_dropout_prob, self.training)
        return x + self.ffn_output(inner)


class ModernBertEncoder(Encoder):
    """Word embeddings, layers of two kinds, and a last LayerNorm."""

    config: ModernBertConfig

    def add_embeddings(self, config: EncoderConfig) -> None:
        """Create the modules of the embeddings, and the last LayerNorm."""
        assert isinstance(config, ModernBertConfig)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.norm_bias)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.norm_bias)

    def make_layer(self, config: EncoderConfig, number: int) -> nn.Module:
        """Create layer `number`, counted from 0."""
        assert isinstance(config, ModernBertConfig)
        return ModernBertLayer(config, number)

    def embed(self, words: Tensor, batch: PackedBatch) -> Tensor:
        """Word embeddings → the first layer's input, both (total_tokens, hidden_size)."""
        return dropout(self.layer_norm(words.to(self.dtype)), self.config.embedding_dropout, self.training)

    def plan(self, batch: PackedBatch, num_virtual_tokens: int) -> tuple[LayerPlan, LayerPlan]:
        """Plan a batch for the global layers and for the local ones."""
        config = self.config
        head_size, window = config.hidden_size // config.num_attention_heads, config.local_attention // 2
        attention_dropout = config.attention_probs_dropout_prob if self.training else 0.0
        everywhere = plan_attention(batch, self.dtype, head_size, dropout=attention_dropout)
        if isinstance(everywhere, Groups):  # the same groups, so that their indices are computed once
            nearby: Plan = replace(everywhere, window=window)
        else:
            nearby = plan_attention(batch, self.dtype, head_size, window=window, dropout=attention_dropout)
        global_angles, local_angles = (
            angles(batch.position_ids, head_size, theta, self.dtype)
            for theta in (config.global_rope_theta, config.local_rope_theta)
        )
        return LayerPlan(everywhere, *global_angles), LayerPlan(nearby, *local_angles)

    def forward(self, batch: PackedBatch, first_only: bool = False) -> Tensor:
        """Return the normalized hidden states; see `Encoder.forward`."""
        return self.final_layer_norm(super().forward(batch, first_only))

    def pooled(self, batch: PackedBatch) -> Tensor:
        """Return the first token's hidden state, or the mean over a sequence's tokens: (num_sequences, hidden_size)."""
        if self.config.classifier_pooling == "cls":
            return self(batch, first_only=True)
        x = self(batch)
        if (mask := batch.attention_mask) is not None:  # of an exported program
            weights = (mask / mask.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)  # (num_sequences, 1, length)
            return (weights @ x.float().unflatten(0, mask.shape)).squeeze(1)
        virtual = (len(x) - batch.total_tokens) // len(batch)  # tokens of a prompt before each sequence
        lengths = batch.cu_seqlens.diff().long() + virtual  # on the device, which no step waits for
        return torch.segment_reduce(x.float(), "mean", lengths=lengths, unsafe=True)


class ModernBertHead(nn.Module):
    """out_proj(dropout(LayerNorm(f(dense(x))))), in float32; f is classifier_activation."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.norm_bias)
        self.out_proj = Linear(config.hidden_size, config.num_labels)
        self.activation = ACTIVATIONS[config.classifier_activation]
        self.dropout_prob = config.head_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        """x: (num_sequences, hidden_size) → logits (num_sequences, num_labels), float32."""
        x = self.norm(self.activation(self.dense(x.float())))
        return self.out_proj(dropout(x, self.dropout_prob, self.training))


MODERNBERT = Family(
    architecture="ModernBert",
    prefix="model.",
    names={
        "word_embeddings": "embeddings.tok_embeddings",
        "layer_norm": "embeddings.norm",
        "layers.{i}.attention_layer_norm": "layers.{i}.attn_norm",
        "layers.{i}.qkv": "layers.{i}.attn.Wqkv",
        "layers.{i}.output": "layers.{i}.attn.Wo",
        "layers.{i}.output_layer_norm": "layers.{i}.mlp_norm",
        "layers.{i}.intermediate": "layers.{i}.mlp.Wi",
        "layers.{i}.ffn_output": "layers.{i}.mlp.Wo",
        "final_layer_norm": "final_norm",
    },
    head_names={"dense": "head.dense", "norm": "head.norm", "out_proj": "classifier"},
    head_modules=("head", "classifier"),
    config_class="families.modernbert:ModernBertConfig",
    encoder_class="families.modernbert:ModernBertEncoder",
    head_class="families.modernbert:ModernBertHead",
    reads_tokens=True,
    layer_norms=LAYER_NORMS | {"final": "final_layer_norm"},
    absent=("layers.0.attention_layer_norm",),
    aliases={"query": "qkv", "key": "qkv", "value": "qkv"},
    unsupported={
        "pfeiffer": "its layers normalize their input, so that there is no LayerNorm after the residual sum",
        "prefix_tuning": "its attention rotates each key by its position, which a prefix does not have",
    },
)
