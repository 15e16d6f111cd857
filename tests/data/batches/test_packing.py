"""Packing, its errors, the order of an epoch, and the batches of a token budget."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from minipeft import EncoderConfig, MinipeftError, pack
from minipeft.data.batches.sampling import epoch_order, split_by_tokens
from minipeft.data.tasks.draw import draw_mask

ROBERTA = EncoderConfig(vocab_size=50, hidden_size=4, num_attention_heads=1, max_position_embeddings=32)
BERT = EncoderConfig(
    model_type="bert",
    vocab_size=50,
    hidden_size=4,
    num_attention_heads=1,
    pad_token_id=0,
    max_position_embeddings=30,
    type_vocab_size=2,
)
SEQUENCES = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=30), min_size=1, max_size=10)


@given(sequences=SEQUENCES, config=st.sampled_from([ROBERTA, BERT]), data=st.data())
def test_a_batch_holds_the_sequences_end_to_end(
    sequences: list[list[int]], config: EncoderConfig, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(sequences), max_size=len(sequences)))
    batch = pack(sequences, labels, config=config)
    ends = batch.cu_seqlens.tolist()
    assert [batch.input_ids[a:b].tolist() for a, b in pairwise(ends)] == sequences
    first = config.position_offset
    assert [batch.position_ids[a:b].tolist() for a, b in pairwise(ends)] == [
        list(range(first, first + len(sequence))) for sequence in sequences
    ]
    assert int(batch.position_ids.max()) < config.max_position_embeddings
    assert batch.lengths == tuple(map(len, sequences)) and batch.max_seqlen == max(batch.lengths)
    assert (len(batch), batch.total_tokens) == (len(sequences), len(batch.input_ids))
    assert (batch.input_ids.dtype, batch.position_ids.dtype) == (torch.int64, torch.int64)
    assert batch.cu_seqlens.dtype == torch.int32 and len(batch.cu_seqlens) == len(sequences) + 1
    assert batch.labels is not None and batch.labels.dtype == torch.int64 and batch.labels.tolist() == labels
    assert batch.token_type_ids is None


def test_positions_start_where_the_family_has_its_first() -> None:
    assert pack([[7, 8], [9]], config=ROBERTA).position_ids.tolist() == [2, 3, 2]
    assert pack([[7, 8], [9]], config=BERT).position_ids.tolist() == [0, 1, 0]
    other_padding = dataclasses.replace(ROBERTA, pad_token_id=4)
    assert pack([[7, 8], [9]], config=other_padding).position_ids.tolist() == [5, 6, 5]


def encodings() -> list[Any]:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w2 $A w3", pair="w2 $A w3 $B:1 w3:1", special_tokens=[("w2", 2), ("w3", 3)]
    )
    return [tokenizer.encode("w7 w8", "w9"), tokenizer.encode("w7")]


def test_encodings_bring_token_types_where_the_model_has_them() -> None:
    batch = pack([*encodings(), [4, 5]], config=BERT)
    assert batch.input_ids.tolist() == [2, 7, 8, 3, 9, 3, 2, 7, 3, 4, 5]
    assert batch.token_type_ids is not None and batch.token_type_ids.dtype == torch.int64
    assert batch.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert pack(encodings(), config=ROBERTA).token_type_ids is None


def test_regression_takes_floats() -> None:
    batch = pack([[7], [8]], [2, 3.5], config=ROBERTA.with_labels(["score"]))
    assert batch.labels is not None and batch.labels.dtype == torch.float32 and batch.labels.tolist() == [2.0, 3.5]
    assert pack([[7], [8]], config=ROBERTA).labels is None


def test_a_batch_moves_whole() -> None:
    batch = pack(encodings(), [0, 1], config=BERT).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.lengths == (6, 3) and batch.max_seqlen == 6


@pytest.mark.parametrize(
    ("sequences", "labels", "message"),
    [
        ([], None, "at least one sequence"),
        ([[1], []], None, "sequence 1 has 0 tokens"),
        ([[1], [1], [5] * 31], None, "sequence 2 has 31 tokens; the model takes 1 to 30"),
        ([[1, 2], [3, 50]], None, "token id 50 in sequence 1 .* vocabulary of 50"),
        ([[-1]], None, "token id -1 in sequence 0"),
        ([[1], [2]], [0], "1 labels for 2 sequences"),
        ([[1], [2]], [0, 2], "label 2 of sequence 1 .* 2 classes 0 to 1"),
        ([[1]], [-1], "label -1 of sequence 0"),
        ([[1]], [0.5], r"label 0\.5"),
        ([[1]], [None], "label None"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_number(sequences: Any, labels: Any, message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        pack(sequences, labels, config=ROBERTA)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), max_tokens=st.integers(1, 100), data=st.data())
def test_a_token_budget_takes_each_index_once_in_order_of_length(
    lengths: list[int], max_tokens: int, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    batches = list(split_by_tokens(indices, lengths, max_tokens))
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == sorted(indices)
    assert [lengths[index] for index in flat] == sorted(lengths[index] for index in indices)
    for number, batch in enumerate(batches):
        tokens = sum(lengths[index] for index in batch)
        assert len(batch) == 1 or tokens <= max_tokens
        if number + 1 < len(batches):  # no batch ends early
            assert tokens + lengths[batches[number + 1][0]] > max_tokens


@given(count=st.integers(0, 300), seed=st.integers(0, 2**31), epoch=st.integers(0, 100))
@settings(deadline=None)
def test_an_epochs_order_is_a_pure_function(count: int, seed: int, epoch: int) -> None:
    torch.manual_seed(epoch)
    order = epoch_order(count, seed, epoch)
    torch.rand(3)
    state = torch.random.get_rng_state()
    assert epoch_order(count, seed, epoch) == order and sorted(order) == list(range(count))
    assert torch.equal(torch.random.get_rng_state(), state)
    if count >= 100:
        assert order != epoch_order(count, seed, epoch + 1) and order != epoch_order(count, seed + 1, epoch)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_stratified_mask_has_each_class_on_both_sides(labels: list[int], fraction: float, seed: int) -> None:
    mask = draw_mask(len(labels), labels, fraction, seed)
    assert mask.tolist() == draw_mask(len(labels), labels, fraction, seed).tolist() and len(mask) == len(labels)
    for label in set(labels):
        count, chosen = labels.count(label), sum(mask[i] for i in range(len(labels)) if labels[i] == label)
        assert (chosen == 0) if count == 1 else (0 < chosen < count)
        assert abs(chosen - count * fraction) <= 1 or chosen in (1, count - 1)
    assert abs(sum(mask) - len(labels) * fraction) <= len(set(labels)) + 0.5


def test_a_stratified_mask_takes_other_examples_for_another_seed() -> None:
    labels = [number % 3 for number in range(90)]
    masks = [draw_mask(len(labels), labels, 0.2, seed) for seed in range(4)]
    assert len({bytes(mask) for mask in masks}) == 4 and {sum(mask) for mask in masks} == {18}
