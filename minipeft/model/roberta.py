"""RoBERTa for sequence classification (Liu et al. 2019), over packed sequences.

    embeddings → layers (post-LayerNorm, as in Vaswani et al. 2017 and BERT) → <s> of each sequence → head → logits

The batch is packed (data/batches/packing.py): no tensor has a padded dimension, and no attention mask exists. What
attention needs to know is in its plan (attention/). Left out: decoder, cross-attention, key-value cache and the outputs
of inner layers. Classification reads the last hidden states alone. The other families (BERT, DeBERTa, ModernBERT, …)
subclass what is here and say only what differs; layers.py has the layers that all of them are built of.

Shapes: total_tokens = all tokens of the batch, without padding; num_sequences = its sequences.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.attention import Plan, attend, plan_attention
from minipeft.model.attention.grouped import Prefix
from minipeft.model.config import EncoderConfig
from minipeft.model.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, dropout


class EncoderLayer(nn.Module):
    """x → a = LayerNorm(x + attention(x));  LayerNorm(a + W₂ f(W₁ a)), where f is hidden_act."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.config = config
        self.activation = ACTIVATIONS[config.hidden_act]
        # Methods find linear layers by these names, which are the same in most families. Queries, keys and values have
        # a layer each, so that a method can adapt one without the others.
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden)
        self.value = Linear(hidden, hidden)
        self.output = Linear(hidden, hidden)
        self.attention_layer_norm = LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = Linear(hidden, inner)
        self.ffn_output = Linear(inner, hidden)
        self.output_layer_norm = LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, plan: Plan, first_tokens: Tensor | None = None, prefix: Prefix | None = None
    ) -> Tensor:
        """Compute the layer.

        Args:
            x: (total_tokens, hidden_size).
            plan: How the sequences lie, from `Encoder.plan`.
            first_tokens: (num_sequences,), the index of each sequence's first token. If given, keys and values are
                computed for every token, and everything else for these tokens only.
            prefix: Keys and values (num_virtual_tokens, hidden_size) that all sequences see.

        Returns:
            (total_tokens, hidden_size), or (num_sequences, hidden_size) with `first_tokens`.
        """
        config = self.config
        hidden_dropout = config.hidden_dropout_prob if self.training else 0.0
        attention_dropout = config.attention_probs_dropout_prob if self.training else 0.0
        key, value = self.key(x), self.value(x)  # (total_tokens, hidden_size)
        if first_tokens is not None:
            # <s> attends to every token, so that keys and values come first. Nothing else of the others is read later.
            x = x.index_select(0, first_tokens)  # (num_sequences, hidden_size)
        attended = attend(
            self.query(x),  # (total_tokens, hidden_size), or (num_sequences, hidden_size)
            key,
            value,
            plan,
            config.num_attention_heads,
            attention_dropout,
            first_only=first_tokens is not None,
            prefix=prefix,
        )
        return self.after_attention(x, attended, hidden_dropout)

    def after_attention(self, x: Tensor, attended: Tensor, probability: float) -> Tensor:
        """Compute what follows attention, token by token: x and `attended`, both (…, hidden_size) → the same shape."""
        # Post-LayerNorm: the sum is normalized, as in the original Transformer. ModernBERT normalizes before.
        x = self.attention_layer_norm(x + dropout(self.output(attended), probability))
        inner = self.activation(self.intermediate(x))  # (…, intermediate_size)
        return self.output_layer_norm(x + dropout(self.ffn_output(inner), probability))


class Encoder(nn.Module):
    """Embeddings and layers. Other families override `add_embeddings`, `embed`, `make_layer`, `plan` or `pooled`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        # Methods, not constructor arguments: a family changes one of them and inherits the others.
        self.add_embeddings(config)
        self.layers = nn.ModuleList(self.make_layer(config, number) for number in range(config.num_hidden_layers))
        # Set by prompt and prefix tuning: (batch, words, prefixes) → the same three, with virtual tokens added.
        self.virtual_tokens: nn.Module | None = None
        # Set by LoRA and AdaLoRA: casts A and B of all layers together (methods/adapted.py).
        self.low_rank: Any = None
        self.dtype = torch.float32  # of the activations and of the frozen weights
        # Set by a method with train_layers: this many lowest layers and the embeddings do not train.
        self.frozen_layers: int | None = None
        # Save only the input of each layer, and recompute the layer in the backward pass with the same dropout: less
        # memory for about a third more time.
        self.activation_checkpointing = False

    def add_embeddings(self, config: EncoderConfig) -> None:
        """Create the modules that `embed` uses."""
        self.word_embeddings = Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.embedding_size)
        self.layer_norm = LayerNorm(config.embedding_size, eps=config.layer_norm_eps)

    def make_layer(self, config: EncoderConfig, number: int) -> nn.Module:
        """Create layer `number`, counted from 0."""
        return EncoderLayer(config)

    def compile_layers(self) -> None:
        """Let torch.compile fuse the operations between a layer's matrix products; the result is the same."""
        # Not attention: the number and the shapes of its groups change from batch to batch, and so would the program.
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layer.after_attention = torch.compile(layer.after_attention, dynamic=True)  # type: ignore[method-assign]

    def embed(self, words: Tensor, batch: PackedBatch) -> Tensor:
        """Word embeddings (total_tokens, embedding_size) → the first layer's input (total_tokens, hidden_size)."""
        x = words + self.position_embeddings(batch.position_ids)  # (total_tokens, embedding_size)
        if batch.token_type_ids is None:
            x = x + self.token_type_embeddings.weight[0]  # every token has type 0: one row, no lookup
        else:
            x = x + self.token_type_embeddings(batch.token_type_ids)
        # A trained table is float32 (Full), and so is the sum until here.
        x = self.layer_norm(x.to(self.dtype))
        return dropout(x, self.config.hidden_dropout_prob, self.training)

    def plan(self, batch: PackedBatch, num_virtual_tokens: int) -> Any:
        """Prepare what all layers of one batch share; each layer gets it as its second argument."""
        # Once per batch and not once per layer: the lengths of the sequences are the same in all of them.
        head_size = self.config.hidden_size // self.config.num_attention_heads
        attention_dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        return plan_attention(batch, self.dtype, head_size, num_virtual_tokens, dropout=attention_dropout)

    def forward(self, batch: PackedBatch, first_only: bool = False) -> Tensor:
        """Return the hidden states of every token (total_tokens, hidden_size), in `self.dtype`.

        With `first_only`, return those of each sequence's first token only (num_sequences, hidden_size); the last layer
        then computes no others. The virtual tokens of a prompt count as tokens. If the batch has `hidden_states`, they
        replace the embeddings and the frozen layers.
        """
        if self.frozen_layers is not None and self.training and batch.hidden_states is None:
            batch = replace(batch, hidden_states=self.frozen_output(batch, first_only))
        return self.compute_layers(batch, first_only, len(self.layers))

    @torch.no_grad()
    def frozen_output(self, batch: PackedBatch, first_only: bool = False) -> Tensor:
        """Return the output of the frozen layers (total_tokens, hidden_size), computed without dropout.

        So it is the same in every epoch, and training can read it from a cache (training/layer_cache.py).
        """
        was_training = self.training
        self.eval()
        x = self.compute_layers(batch, first_only, self.frozen_layers or 0)
        self.train(was_training)
        return x

    def may_train(self, path: str) -> bool:
        """Return whether a method may change a module or parameter of the encoder, such as layers.3.query."""
        if self.frozen_layers is None:
            return True
        if path.startswith("layers."):
            return int(path.split(".")[1]) >= self.frozen_layers
        return path.startswith("final_layer_norm")  # ModernBERT's, after the last layer; the others are embeddings

    def compute_layers(self, batch: PackedBatch, first_only: bool, stop: int) -> Tensor:
        """Compute the layers up to number `stop`, from the embeddings or from the frozen layers' output."""
        start, x = 0, batch.hidden_states  # (total_tokens, hidden_size)
        prefixes: Sequence[Prefix | None] = [None] * len(self.layers)
        if x is not None:
            start = self.frozen_layers or 0
        else:
            words = self.word_embeddings(batch.input_ids)  # (total_tokens, embedding_size)
            if self.virtual_tokens is not None:
                batch, words, prefixes = self.virtual_tokens(batch, words, prefixes)
        # A prefix adds keys to every sequence, and so changes where each one's keys begin.
        plan = self.plan(batch, 0 if prefixes[0] is None else len(prefixes[0][0]))
        last = len(self.layers) - 1
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        # A layer that is recomputed later, in the backward pass, casts its own matrices both times.
        with nullcontext() if self.low_rank is None or recompute else self.low_rank.cast(self.dtype):
            x = self.embed(words, batch) if x is None else x  # (total_tokens, hidden_size)
            for number in range(start, stop):
                # Only the last layer may drop tokens: the layers before it feed the keys and values of the next one.
                first_tokens = batch.cu_seqlens[:-1] if first_only and number == last else None
                inputs = x, plan, first_tokens, prefixes[number]
                layer = self.layers[number]
                x = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        return x

    def pooled(self, batch: PackedBatch) -> Tensor:
        """Return what the head reads of each sequence (num_sequences, hidden_size): its first token's hidden state."""
        return self(batch, first_only=True)


class ClassificationHead(nn.Module):
    """out_proj(dropout(tanh(dense(dropout(x))))), in float32; families differ in tanh and in the first dropout."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        # Every method trains the head, so it is float32 in every precision.
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.num_labels)
        self.dropout_prob = self.input_dropout_prob = config.head_dropout_prob
        self.activation: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        """x: <s>'s hidden states (num_sequences, hidden_size) → logits (num_sequences, num_labels), float32."""
        x = dropout(x.float(), self.input_dropout_prob, self.training)
        x = self.activation(self.dense(x))  # (num_sequences, hidden_size)
        return self.out_proj(dropout(x, self.dropout_prob, self.training))
