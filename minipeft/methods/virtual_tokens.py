"""Prefix tuning (Li and Liang 2021) and prompt tuning (Lester et al. 2021): trained virtual tokens before a sequence.

A prefix is keys and values of every layer, and a prompt is embeddings before a text's own. Both take positions of the
table. The MLP that the paper of prefix tuning computes the prefix with is left out, as in P-tuning v2 (Liu et al.
2022).
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, check_choice, check_int
from minipeft.methods import MethodConfig, check_settings
from minipeft.methods.peft_format import PeftFormat
from minipeft.methods.peft_format.reading import check_fields
from minipeft.model.attention.grouped import Prefix
from minipeft.model.attention.varlen import prefix_rows, prepend_to_each
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig

# How a prompt starts: our name → peft's. A text of the user's (TEXT) is of the vocabulary too.
PEFT_INITIALIZATIONS = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB"}
INITIALIZATIONS = {theirs: ours for ours, theirs in PEFT_INITIALIZATIONS.items()} | {"TEXT": "vocabulary"}
# Further fields of peft's configs that change nothing in a loaded adapter: peft saves what its MLP makes of a prefix.
PREFIX_FIELDS = ("prefix_projection", "encoder_hidden_size", "init_weights")
PROMPT_FIELDS = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")


@dataclass(frozen=True)
class PrefixTuning(MethodConfig):
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


@dataclass(frozen=True)
class PromptTuning(MethodConfig):
    """The encoder reads [P; X]: the prompt P, which trains, and a text's embeddings X (Lester et al. 2021, section 2).

    Args:
        num_virtual_tokens: The rows of P.
        init: How P starts: "random" (normal, standard deviation 1, as in peft) or "vocabulary" (the embeddings of words
            drawn at random; section 3.2, which draws from the 5,000 most common).

    Virtual tokens take the first positions and the token type 0, and the classifier reads the first of them, as in
    peft. They come on top of a text's own tokens: num_virtual_tokens + length must fit the position table, and
    max_tokens, which limits a batch, does not count them.
    Parameters: num_virtual_tokens · hidden_size; 15,360 for roberta-base with 20.

    Raises:
        MinipeftError: for a number below 1 and an unknown init; the model does, for a sequence that does not fit.
    """

    num_virtual_tokens: int = 20
    init: str = "random"

    def __post_init__(self) -> None:
        check_settings(self, num_virtual_tokens=check_int)
        check_choice("init", self.init, PEFT_INITIALIZATIONS)


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
        """Return the batch, its positions moved on, and a pair (num_virtual_tokens, hidden_size) for each layer."""
        number = len(self.prompt_embeddings)
        _check_length(batch, number, self.config)
        batch = dataclasses.replace(batch, position_ids=batch.position_ids + number)
        parts = self.prompt_embeddings.unflatten(1, (-1, self.config.hidden_size)).unbind(1)  # key, value, key, …
        return batch, words, list(zip(parts[::2], parts[1::2], strict=True))


class Prompt(nn.Module):
    """X → [P; X] for every sequence of a batch; prompt_embeddings (num_virtual_tokens, hidden_size) is P, float32."""

    def __init__(self, prompt_embeddings: Tensor, config: EncoderConfig) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(prompt_embeddings)
        self.config = config

    def forward(self, batch: PackedBatch, words: Tensor, prefixes: Any) -> tuple[PackedBatch, Tensor, Any]:
        """Return the longer batch and its embeddings (tokens + num_sequences · num_virtual_tokens, hidden_size)."""
        number = len(self.prompt_embeddings)
        _check_length(batch, number, self.config)
        no_words = batch.input_ids.new_zeros(number)  # virtual tokens have no id; nothing looks these up
        positions = torch.arange(number, device=words.device) + self.config.position_offset
        sequences = torch.arange(len(batch) + 1, dtype=torch.int32, device=words.device)
        rows = prefix_rows(batch, number)
        types = batch.token_type_ids
        longer = dataclasses.replace(
            batch,
            input_ids=prepend_to_each(no_words, batch.input_ids, rows),
            position_ids=prepend_to_each(positions, batch.position_ids + number, rows),
            token_type_ids=None if types is None else prepend_to_each(no_words, types, rows),
            cu_seqlens=batch.cu_seqlens + number * sequences,
            max_seqlen=batch.max_seqlen + number,
            lengths=tuple(length + number for length in batch.lengths),
        )
        return longer, prepend_to_each(self.prompt_embeddings.to(words.dtype), words, rows), prefixes


def install(model: SequenceClassifier, method: PrefixTuning | PromptTuning) -> None:
    """Put the virtual tokens into a frozen model."""
    number, words = method.num_virtual_tokens, model.encoder.word_embeddings.weight.detach()
    if number >= model.config.max_length:
        raise MinipeftError(
            f"num_virtual_tokens {number} leaves none of the model's {model.config.max_length} positions to the text; "
            "take fewer"
        )
    if isinstance(method, PrefixTuning):
        model.encoder.virtual_tokens = LayerPrefixes(number, model.config, words.device)
    elif method.init == "random":
        model.encoder.virtual_tokens = Prompt(torch.randn(number, words.shape[1], device=words.device), model.config)
    else:
        drawn = torch.randint(len(words), (number,), device=words.device)
        model.encoder.virtual_tokens = Prompt(words[drawn].float(), model.config)


def _check_length(batch: PackedBatch, num_virtual_tokens: int, config: EncoderConfig) -> None:
    """Raise for a sequence that does not fit the position table behind the virtual tokens."""
    room = config.max_length - num_virtual_tokens
    if batch.max_seqlen > room:
        raise MinipeftError(
            f"sequence {batch.lengths.index(batch.max_seqlen)} has {batch.max_seqlen} tokens, but {num_virtual_tokens} "
            f"virtual ones stand before it and the model takes {config.max_length} in all: set max_length to {room}"
        )


def to_peft(method: PrefixTuning | PromptTuning, config: EncoderConfig) -> dict[str, Any]:
    """Return peft's PrefixTuningConfig or PromptTuningConfig fields."""
    if isinstance(method, PrefixTuning):
        return shape_fields(method.num_virtual_tokens, config) | {"encoder_hidden_size": config.hidden_size}
    init = {"prompt_tuning_init": PEFT_INITIALIZATIONS[method.init]}
    return shape_fields(method.num_virtual_tokens, config) | init


def shape_fields(num_virtual_tokens: int, config: EncoderConfig) -> dict[str, Any]:
    """Return the fields that both of peft's configs have."""
    return {
        "num_virtual_tokens": num_virtual_tokens,
        "token_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_transformer_submodules": 1,
    }


def _read_number(content: dict[str, Any], config: EncoderConfig, known: Collection[str]) -> int:
    """Return num_virtual_tokens; raise for another shape than the model's, and for a field that is not `known`."""
    number = check_int("num_virtual_tokens", content.get("num_virtual_tokens"))
    expected = shape_fields(number, config)
    check_fields(content, {*expected, *known})
    for name, value in expected.items():
        if content.get(name, value) not in (None, value):
            raise MinipeftError(f"{name} {content[name]!r} is not the model's {value}; load the adapter's own base")
    return number


def from_peft(content: dict[str, Any], config: EncoderConfig) -> PrefixTuning | PromptTuning:
    """Return the config that peft's PrefixTuningConfig or PromptTuningConfig fields describe."""
    if content["peft_type"] == "PREFIX_TUNING":
        return PrefixTuning(_read_number(content, config, PREFIX_FIELDS))
    number, init = _read_number(content, config, PROMPT_FIELDS), content.get("prompt_tuning_init", "RANDOM")
    if init not in INITIALIZATIONS:
        raise MinipeftError(f"prompt_tuning_init {init!r} is not supported; {', '.join(INITIALIZATIONS)} are")
    return PromptTuning(number, INITIALIZATIONS[init])


PEFT = PeftFormat(
    to_peft,
    from_peft,
    names={"encoder.virtual_tokens.prompt_embeddings": "prompt_embeddings"},
    prefix="base_model.",
)
