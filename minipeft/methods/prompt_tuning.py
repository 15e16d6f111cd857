"""Prompt tuning (Lester et al. 2021): trained embeddings before each sequence's own tokens."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, check_choice, check_int
from minipeft.methods.adapted import check_settings
from minipeft.methods.peft_format import PeftFormat
from minipeft.methods.virtual_tokens import check_length, check_number, read_fields, write_fields
from minipeft.model.attention.varlen import prefix_rows, prepend_to_each
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig

INITIALISATIONS = ("random", "vocabulary")


@dataclass(frozen=True)
class PromptTuning:
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
        check_choice("init", self.init, INITIALISATIONS)


class Prompt(nn.Module):
    """X → [P; X] for every sequence of a batch; prompt_embeddings (num_virtual_tokens, hidden_size) is P, float32."""

    def __init__(self, prompt_embeddings: Tensor, config: EncoderConfig) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(prompt_embeddings)
        self.config = config

    def forward(self, batch: PackedBatch, words: Tensor, prefixes: Any) -> tuple[PackedBatch, Tensor, Any]:
        """The longer batch and its embeddings (total_tokens + num_sequences · num_virtual_tokens, hidden_size)."""
        number = len(self.prompt_embeddings)
        check_length(batch, number, self.config)
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


def install(model: SequenceClassifier, method: PromptTuning) -> None:
    check_number(method.num_virtual_tokens, model.config)
    words = model.encoder.word_embeddings.weight.detach()
    if method.init == "vocabulary":
        drawn = torch.randint(len(words), (method.num_virtual_tokens,), device=words.device)
        prompt = words[drawn].float()
    else:
        prompt = torch.randn(method.num_virtual_tokens, words.shape[1], device=words.device)
    model.encoder.virtual_tokens = Prompt(prompt, model.config)


# How the prompt started changes nothing in a file; a text's words are of the vocabulary.
PEFT_INITIALISATIONS = {"RANDOM": "random", "SAMPLE_VOCAB": "vocabulary", "TEXT": "vocabulary"}
TO_PEFT = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB"}
KNOWN = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")


def to_peft(method: PromptTuning, config: EncoderConfig) -> dict[str, Any]:
    """peft's PromptTuningConfig fields."""
    return write_fields(method.num_virtual_tokens, config) | {"prompt_tuning_init": TO_PEFT[method.init]}


def from_peft(content: dict[str, Any], config: EncoderConfig) -> PromptTuning:
    """The config that peft's PromptTuningConfig fields describe."""
    number = read_fields(content, config, KNOWN)
    start = content.get("prompt_tuning_init", "RANDOM")
    if start not in PEFT_INITIALISATIONS:
        raise MinipeftError(f"prompt_tuning_init {start!r} is not supported; {', '.join(PEFT_INITIALISATIONS)} are")
    return PromptTuning(number, PEFT_INITIALISATIONS[start])


PEFT = PeftFormat(
    to_peft,
    from_peft,
    names={"encoder.virtual_tokens.prompt_embeddings": "prompt_embeddings"},
    prefix="base_model.",
)
