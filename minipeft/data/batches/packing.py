"""Token ids → PackedBatch: sequences laid end to end, without padding, in flash-attention's vocabulary.

    [[0, 5, 6, 2], [0, 7, 2]]  →  input_ids 0 5 6 2 0 7 2,  cu_seqlens 0 4 7,  position_ids 2 3 4 5 2 3 4

A padded batch (batch, longest) would spend a linear layer's time on padding too: in random batches of 16, more than
half of the tokens of RTE and of SST-2. Packed, every layer sees tokens only, and attention alone needs to know where
sequences start. A <pad> id counts as a token. Only the padded batches of exported programs have an attention_mask.

No sequence is cut or joined here. Truncation is the tokenizer's, and which sequences share a batch is sampling.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from minipeft.data.tokens.token_table import PackingConfig, TokenTable
from minipeft.errors import MinipeftError
from minipeft.problems import problem_class


@dataclass(frozen=True)
class PackedBatch:
    """Sequences laid end to end without padding. `pack` builds and checks one; the constructor checks nothing.

    Attributes:
        input_ids: (total_tokens,), int64.
        position_ids: (total_tokens,), int64; positions restart in each sequence.
        token_type_ids: (total_tokens,), int64, or None if all are 0.
        cu_seqlens: (num_sequences + 1,), int32; sequence i is tokens cu_seqlens[i] to cu_seqlens[i + 1].
        max_seqlen: Length of the longest sequence, in tokens.
        lengths: Length of each sequence in tokens, on the host, so that no step waits for the device.
        labels: The targets of the loss, or None: (num_sequences,), int64, or float32 for regression;
            (num_sequences, num_labels), float32, 0 or 1, for multi-label; (total_tokens,), int64, for tokens.
        weights: (num_sequences,), float32: factors on the losses of the sequences; None for 1.
        attention_mask: (num_sequences, length), int64: 0 at padding, in a padded batch (padded.py); else None.
        hidden_states: (total_tokens, hidden_size), the cached output of frozen layers, where layers above them train.
        features: What the head reads of the sequences, cached, where it alone trains.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    lengths: tuple[int, ...]
    labels: Tensor | None = None
    weights: Tensor | None = None
    attention_mask: Tensor | None = None
    hidden_states: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.lengths)

    @property
    def total_tokens(self) -> int:
        """The number of tokens."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch on another device, without waiting for a CUDA device."""
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        moved: dict[str, Any] = {name: to_device(x, torch.device(device)) for name, x in tensors.items()}
        return replace(self, **moved)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for a copy from it to CUDA."""
    if device.type == "cuda" and x.device.type == "cpu":
        # CUDA reads pinned memory without the host. From other memory, the host would have to wait for the copy.
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def pack(
    token_ids: Sequence[Sequence[int] | Encoding] | TokenTable,
    labels: Sequence[int] | Sequence[float] | Sequence[Sequence[float]] | None = None,
    config: PackingConfig | None = None,
) -> PackedBatch:
    """Pack sequences end to end into one batch.

    Positions count every token, including <pad>: nothing is padded here, so a <pad> id comes from the text.

    Args:
        token_ids: Lists of int, or tokenizers.Encoding (which carries BERT's token types), with special tokens.
        labels: One per sequence: class indices, or floats if config.num_labels is 1 (regression), or num_labels zeros
            and ones if config.problem_type is "multi_label_classification".
        config: The model's config, model.config. Required, for positions and bounds.

    Returns:
        The packed batch, with sequences in the given order.

    Raises:
        MinipeftError: for an empty batch or sequence, a sequence longer than the position table, a token id outside
            the vocabulary, or a label outside the classes. The message names the sequence.
    """
    if config is None:
        raise MinipeftError("pack needs the model's config: pack(token_ids, labels, config=model.config)")
    # One table for both kinds of input: training reads its rows from a memory-mapped file, without Python lists.
    table = token_ids if isinstance(token_ids, TokenTable) else TokenTable.from_sequences(token_ids)
    if not len(table):
        raise MinipeftError("a batch needs at least one sequence")
    lengths = tuple(table.lengths.tolist())
    for number, length in enumerate(lengths):
        # An empty sequence has no first token for the head to read; a long one has no positions left.
        if not 1 <= length <= config.max_length:
            raise MinipeftError(
                f"sequence {number} has {length} tokens; the model takes 1 to {config.max_length}: set max_length"
            )
    ids, types = table.concatenate()  # both (total_tokens,)
    _check_ids(ids, table.lengths, config)
    input_ids = torch.from_numpy(ids)  # (total_tokens,)
    # The cumulative lengths say where each sequence starts and ends. They replace the attention mask.
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)  # (num_sequences + 1,)
    starts = cu_seqlens[:-1].repeat_interleave(torch.tensor(lengths))  # (total_tokens,), of each token's sequence
    # RoBERTa's first position is padding_idx + 1, because its position table has a row for <pad>; other models' is 0.
    position_ids = torch.arange(len(input_ids)) - starts + config.position_offset  # (total_tokens,)
    return PackedBatch(
        input_ids,
        position_ids,
        _token_types(types, config),
        cu_seqlens.int(),  # the dtype that the attention operators take
        max(lengths),
        lengths,
        _labels(labels, lengths, config),
    )


def _check_ids(ids: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], config: PackingConfig) -> None:
    """Raise MinipeftError for a token id outside the vocabulary; embedding lookups on CUDA would not name it."""
    if ids.min() >= 0 and ids.max() < config.vocab_size:
        return
    # Only now, for the message: the first bad token, and the sequence that holds it.
    position = int(np.argmax((ids < 0) | (ids >= config.vocab_size)))
    number = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
    raise MinipeftError(
        f"token id {ids[position]} in sequence {number} lies outside the model's vocabulary of {config.vocab_size}; "
        "the tokenizer belongs to another model"
    )


def _token_types(types: np.ndarray[Any, Any] | None, config: PackingConfig) -> Tensor | None:
    """Return the type of each token, or None if all are 0 or the model has none."""
    # With None the encoder adds one row to all tokens, without a lookup and without its backward pass.
    if types is None or config.type_vocab_size <= 1 or not types.any():
        return None
    if types.max() >= config.type_vocab_size:
        raise MinipeftError(
            f"token type {types.max()} lies outside the model's {config.type_vocab_size}; "
            "the tokenizer belongs to another model"
        )
    return torch.from_numpy(types)  # (total_tokens,)


def _labels(labels: Sequence[Any] | None, lengths: Sequence[int], config: PackingConfig) -> Tensor | None:
    if labels is None:
        return None
    if len(labels) != len(lengths):
        raise MinipeftError(f"{len(labels)} labels for {len(lengths)} sequences; give one label per sequence")
    # The dtype and the shape depend on what a label is: a class, a number, a set, or one class per token.
    return problem_class(config.problem_type, config.num_labels).targets(labels, lengths, config.num_labels)
