"""Filling batches up to a few sizes: what is in them stays, and what is added counts for nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from conftest import largest, ragged, reference_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from varlen_operators import plan_as_on_cuda

from minipeft import EncoderConfig, PrefixTuning, PromptTuning, apply, load_pretrained, pack
from minipeft.data.batches.buckets import COARSE, FINE, MAX_SEQLENS, BucketSizes, pad_to_bucket
from minipeft.data.batches.packing import PackedBatch
from minipeft.model import roberta
from minipeft.model.classifier import SequenceClassifier
from minipeft.problems import problem_of
from minipeft.problems.problem import IGNORE_INDEX

ROBERTA = EncoderConfig(vocab_size=300, hidden_size=8, num_attention_heads=1)
BERT = dataclasses.replace(ROBERTA, model_type="bert", pad_token_id=0, max_position_embeddings=512, type_vocab_size=2)
FEWEST_TOKENS = 256  # COARSE's smallest step
LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=80)


@given(
    lengths=LENGTHS,
    config=st.sampled_from([ROBERTA, BERT]),
    regression=st.booleans(),
    sizes=st.sampled_from([COARSE, FINE]),
)
@settings(max_examples=150, deadline=None)
@example(lengths=[1], config=ROBERTA, regression=False, sizes=COARSE)
@example(lengths=[1] * 80, config=BERT, regression=True, sizes=COARSE)
@example(lengths=[1] * 80, config=BERT, regression=True, sizes=FINE)
@example(lengths=[512] * 8, config=ROBERTA, regression=False, sizes=COARSE)  # of a bucket's sizes: nothing is added
@example(lengths=[512] * 8, config=ROBERTA, regression=False, sizes=FINE)
def test_the_own_sequences_stay_and_the_sizes_are_a_buckets(
    lengths: list[int], config: EncoderConfig, regression: bool, sizes: BucketSizes
) -> None:
    config = config.with_labels(["score"] if regression else ["no", "yes"])
    labels = [index % 2 for index in range(len(lengths))]
    batch = pack(ragged(lengths), labels, config=config)
    filled = pad_to_bucket(batch, config, config.max_length, sizes)
    tokens, count = batch.total_tokens, len(batch)
    for name in ("input_ids", "position_ids"):
        assert torch.equal(getattr(filled, name)[:tokens], getattr(batch, name))
    assert torch.equal(filled.cu_seqlens[: count + 1], batch.cu_seqlens) and filled.lengths[:count] == batch.lengths
    assert filled.labels is not None and batch.labels is not None and torch.equal(filled.labels[:count], batch.labels)
    # What is added: whole sequences of pad tokens, with positions from the first on and no label.
    added = filled.lengths[count:]
    as_packed = pack([[config.pad_token_id] * length for length in (*lengths, *added)], config=config)
    for name in ("position_ids", "cu_seqlens", "lengths", "total_tokens"):
        assert torch.equal(torch.as_tensor(getattr(filled, name)), torch.as_tensor(getattr(as_packed, name)))
    assert filled.cu_seqlens.dtype == torch.int32 and len(filled.input_ids) == filled.total_tokens
    assert bool((filled.input_ids[tokens:] == config.pad_token_id).all())
    assert bool((filled.labels[count:].isnan() if regression else filled.labels[count:] == IGNORE_INDEX).all())
    assert len(filled.labels) == len(filled) and filled.labels.dtype == batch.labels.dtype
    # The sizes.
    assert filled.max_seqlen in MAX_SEQLENS and max(filled.lengths) <= filled.max_seqlen
    room = len(filled) - count  # each dummy has a token at least
    if sizes is COARSE:
        assert len(filled).bit_count() == 1 and filled.total_tokens % FEWEST_TOKENS == 0
        assert filled.total_tokens - tokens - room < max(FEWEST_TOKENS, (tokens + room) / 8 + 1)
    else:
        assert len(filled) % 8 == 0 or len(filled) in (1, 2, 4)
        assert filled.total_tokens % (64 if filled.total_tokens > 64 else 8) == 0
        assert filled.total_tokens - tokens - room < 64 and room <= 8
    if types := config.type_vocab_size > 1:
        assert filled.token_type_ids is not None and torch.equal(
            filled.token_type_ids, torch.zeros_like(filled.input_ids)
        )
    assert types or filled.token_type_ids is None


def test_token_types_stay() -> None:
    batch = dataclasses.replace(pack([[7, 8, 9]], config=BERT), token_type_ids=torch.tensor([0, 1, 1]))
    types = pad_to_bucket(batch, BERT, 512, COARSE).token_type_ids
    assert types is not None and types[:3].tolist() == [0, 1, 1] and not types[3:].any()


def test_a_training_run_meets_few_sizes() -> None:
    """Every batch of 1 to 64 sequences has one of these sizes, the same whichever lengths lead there."""
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(3000):
        count = int(torch.randint(1, 65, (), generator=generator))
        bound = int(torch.randint(1, 257, (), generator=generator))
        lengths = torch.randint(1, bound + 1, (count,), generator=generator).tolist()
        filled = pad_to_bucket(pack([[7] * length for length in lengths], config=ROBERTA), ROBERTA, 256, COARSE)
        sizes.add((filled.total_tokens, len(filled), filled.max_seqlen))
    tokens, sequences, longest = (set(size) for size in zip(*sizes, strict=True))
    assert sequences <= {2**power for power in range(9)} and longest <= {32, 64, 128, 256}
    # 8 sizes for each doubling of the tokens from 2048 on, and as many below.
    assert len(tokens) <= 8 * (1 + math.ceil(math.log2(max(tokens) / (8 * FEWEST_TOKENS))))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), longest=st.integers(40, 60))
@settings(max_examples=40, deadline=None)
def test_no_sequence_becomes_longer_than_the_model_takes(lengths: list[int], longest: int) -> None:
    filled = pad_to_bucket(pack([[7] * length for length in lengths], config=ROBERTA), ROBERTA, longest, COARSE)
    assert max(filled.lengths) <= filled.max_seqlen <= longest


@pytest.mark.parametrize("sizes", [COARSE, FINE], ids=["few", "more"])
@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize("method", [None, PromptTuning(3), PrefixTuning(3)], ids=str)
@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_loss_and_gradients_are_the_same_filled(
    model_type: str,
    num_labels: int,
    method: object,
    varlen: bool,
    sizes: BucketSizes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if varlen:
        monkeypatch.setattr(roberta, "plan_attention", plan_as_on_cuda)
    reference_model(model_type, num_labels).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = load_pretrained(tmp_path, num_labels)
    if method is not None:
        apply(model, method)
    batch = pack(ragged((7, 1, 40, 3)), [0, 2, 1, 1] if num_labels > 1 else [0.5, 2.0, -1.0, 1.5], config=model.config)
    longest = model.config.max_length - getattr(method, "num_virtual_tokens", 0)
    filled = pad_to_bucket(batch, model.config, longest, sizes)
    assert len(filled) > len(batch)
    loss, logits, gradients = step(model, batch)
    loss_filled, logits_filled, gradients_filled = step(model, filled)
    assert largest(loss, loss_filled) < 1e-5 and largest(logits, logits_filled[: len(batch)]) < 1e-5
    for a, b in zip(gradients, gradients_filled, strict=True):
        assert largest(a, b) < 1e-4


def step(model: SequenceClassifier, batch: PackedBatch) -> tuple[Tensor, Tensor, list[Tensor]]:
    model.zero_grad()
    logits = model(batch)
    assert batch.labels is not None
    problem = problem_of(model.config.problem_type, model.config.id2label.values(), {})
    loss = problem.losses(logits, batch.labels).sum()
    loss.backward()
    return loss, logits, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
