"""ModernBERT: windows, rotary positions, config, precision, long texts, and runs, against transformers and peft.

test_families.py compares logits, gradients, training and adapters, as for the other families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model, refused
from family_checks import LENGTHS, check_activation_checkpointing, check_bfloat16, check_run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from varlen_operators import LIBRARY  # noqa: F401 - registers the operators on the CPU

from minipeft import (
    BitFit,
    Full,
    LoRA,
    MinipeftError,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    SequenceClassifier,
    apply,
    load_pretrained,
    pack,
    save_adapter,
)
from minipeft.data.batches.packing import PackedBatch
from minipeft.data.tasks.synthetic import generate
from minipeft.model.attention import attend, attend_plain, plan_attention
from minipeft.model.attention.rotary import angles, rotate, rotate_plain
from minipeft.model.attention.varlen import plan_varlen
from minipeft.model.families import load_config
from minipeft.model.families.modernbert import ModernBertConfig
from minipeft.pretraining.corpus import train_tokenizer


def both(folder: Path, num_labels: int = 2, **shape: Any) -> tuple[Any, SequenceClassifier]:
    """transformers' model with random weights, and ours with the same."""
    reference = reference_model("modernbert", num_labels, **shape)
    reference.save_pretrained(folder)
    return reference, load_pretrained(folder, num_labels)


def batch_of(lengths: list[int]) -> PackedBatch:
    tokens, starts = torch.zeros(sum(lengths), dtype=torch.int64), torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedBatch(tokens, tokens, None, starts, max(lengths), tuple(lengths))


def agree(expected: Tensor, found: Tensor, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    """Two results and their gradients agree."""
    assert largest(expected, found) < tolerance
    weights = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in (expected, found)]
    for a, b in zip(*gradients, strict=True):
        assert largest(a, b) < tolerance * max(1.0, float(a.abs().max()))


# ----------------------------------------------------------------------------------------- windows and rotary positions


@pytest.mark.parametrize("first_only", [False, True])
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    heads=st.integers(1, 3),
    head_size=st.integers(1, 5),
    window=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
@example(lengths=[20, 19, 20, 18, 1], heads=2, head_size=4, window=3)  # blocks, and padding in a group
@example(lengths=[100, 90], heads=2, head_size=4, window=2)  # queries of padding that see nothing but padding
@example(lengths=[100, 90], heads=2, head_size=4, window=33)  # one product for the sequence, the band masked
@example(lengths=[300, 290, 3], heads=2, head_size=4, window=64)
def test_attention_in_a_window_equals_plain_forward_and_backward(
    first_only: bool, lengths: list[int], heads: int, head_size: int, window: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [len(lengths) if first_only else sum(lengths), sum(lengths), sum(lengths)]
    inputs = [torch.randn(size, heads * head_size, generator=generator).requires_grad_() for size in sizes]
    plan = plan_attention(batch_of(lengths), torch.float32, head_size, window=window)
    plain = attend_plain(*inputs, lengths, heads, first_only=first_only, window=window)
    agree(plain, attend(*inputs, plan, heads, first_only=first_only), inputs)


def test_a_window_hides_what_is_farther_away() -> None:
    lengths, heads, window = [50, 9], 2, 4
    query, key, value = torch.randn(3, 59, 6, generator=torch.Generator().manual_seed(0))
    plan = plan_attention(batch_of(lengths), torch.float32, 3, window=window)
    output = attend(query, key, value, plan, heads)
    changed = attend(query, key, value.index_fill(0, torch.tensor(20), 9.0), plan, heads)
    rows = (output - changed).abs().sum(1).nonzero().flatten().tolist()
    assert rows == list(range(20 - window, 20 + window + 1))


@pytest.mark.parametrize("window", [3, 64])
def test_dropout_in_a_window_keeps_the_mean_and_drops_whole_weights(window: int) -> None:
    probability, length = 0.3, 200
    torch.manual_seed(0)
    plan = plan_attention(batch_of([length] * 40), torch.float32, 4, window=window)
    zeros, ones = torch.zeros(40 * length, 8), torch.ones(40 * length, 8)
    output = attend(zeros, zeros, ones, plan, 2, probability)
    assert abs(float(output.mean()) - 1) < 0.02
    middle = output.view(40, length, 8)[:, window:-window]  # these tokens see 2 · window + 1
    kept = middle * (2 * window + 1) * (1 - probability)
    assert largest(kept, kept.round()) < 1e-3


@pytest.mark.parametrize("first_only", [False, True])
def test_the_operator_for_windows_equals_plain_forward_and_backward(first_only: bool) -> None:
    lengths, heads, window = [7, 1, 40, 12], 2, 5
    sizes = [len(lengths) if first_only else sum(lengths), sum(lengths), sum(lengths)]
    drawn = [torch.randn(size, 16, generator=torch.Generator().manual_seed(size)).bfloat16() for size in sizes]
    inputs, exact = [x.clone().requires_grad_() for x in drawn], [x.float().requires_grad_() for x in drawn]
    fast = attend(*inputs, plan_varlen(batch_of(lengths), window=window), heads, first_only=first_only)
    plain = attend_plain(*exact, lengths, heads, first_only=first_only, window=window)
    assert largest(fast.float(), plain) < 0.03
    for output in (fast, plain):
        output.float().sin().sum().backward()
    for a, b in zip(inputs, exact, strict=True):
        assert a.grad is not None and b.grad is not None and largest(a.grad.float(), b.grad) < 0.03


@given(tokens=st.integers(1, 20), heads=st.integers(1, 4), half=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_rotation_equals_plain_forward_and_backward(tokens: int, heads: int, half: int) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, 6 * heads * half, generator=generator).requires_grad_()
    cos, sin = angles(torch.arange(tokens), 2 * half, 100.0, torch.float32)
    plain, fast = (torch.cat(function(qkv, cos, sin), dim=-1) for function in (rotate_plain, rotate))
    agree(plain, fast, [qkv])


def test_rotation_equals_transformers() -> None:
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

    tokens, heads, size = 30, 3, 8
    qkv = torch.randn(tokens, 3 * heads * size, generator=torch.Generator().manual_seed(0))
    cos, sin = angles(torch.arange(tokens), size, 10_000.0, torch.float32)
    query, key, _ = qkv.view(1, tokens, 3, heads, size).transpose(1, 3).unbind(2)  # (1, heads, tokens, size)
    whole = (torch.cat([x, x], dim=-1).transpose(0, 1) for x in (cos, sin))
    expected = apply_rotary_pos_emb(query, key, *whole)
    for ours, theirs in zip(rotate(qkv, cos, sin), expected, strict=False):
        assert largest(ours, theirs[0].transpose(0, 1).flatten(1)) < 1e-6


# --------------------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_hidden_states_equal_transformers_and_do_not_depend_on_the_batch(pooling: str, tmp_path: Path) -> None:
    reference, model = both(tmp_path, classifier_pooling=pooling)
    ids = ragged(LENGTHS)
    batch = pack(ids, config=model.config)
    expected = reference.model(**padded(ids, 0)).last_hidden_state
    expected = torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)])
    assert largest(model.encoder(batch), expected) < 1e-5
    logits = model(batch)
    alone = torch.cat([model(pack([sequence], config=model.config)) for sequence in ids])
    assert largest(logits, alone) < 1e-5
    assert largest(logits, reference(**padded(ids, 0)).logits) < 1e-5


@pytest.mark.full
@torch.no_grad()
def test_8192_tokens_give_the_logits_of_transformers(tmp_path: Path) -> None:
    shape = {"max_position_embeddings": 8192, "num_hidden_layers": 4, "local_attention": 128}
    reference, model = both(tmp_path, **shape)
    reference.set_attn_implementation("sdpa")
    ids = ragged((8192, 2048, 3))
    logits = model(pack(ids, config=model.config))
    theirs = torch.cat([reference(torch.tensor([row])).logits for row in ids])
    assert logits.std() > 0.1
    assert largest(logits, theirs) < 1e-5


@pytest.mark.parametrize("local_last", [False, True])
def test_the_last_layer_for_first_tokens_alone_equals_the_full_one(local_last: bool, tmp_path: Path) -> None:
    _, model = both(tmp_path, num_hidden_layers=3 if local_last else 4)
    batch = pack(ragged(LENGTHS), config=model.config)
    outputs = (model.encoder(batch, first_only=True), model.encoder(batch)[batch.cu_seqlens[:-1].long()])
    assert model.encoder.layers[-1].is_local == local_last
    agree(*outputs, list(model.encoder.parameters()), 1e-4)


def test_bfloat16_is_as_near_to_float32_as_in_transformers(tmp_path: Path) -> None:
    reference, _ = both(tmp_path)
    check_bfloat16(reference, tmp_path, 0.03)


@pytest.mark.parametrize("method", [Full(), LoRA(rank=2, dropout=0.1)], ids=["full", "lora"])
def test_activation_checkpointing_gives_the_same_gradients_to_the_bit(method: Any, tmp_path: Path) -> None:
    _, model = both(tmp_path, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, classifier_pooling="mean")
    check_activation_checkpointing(apply(model, method), ragged(LENGTHS))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_prompt_opens_in_peft_with_the_same_logits(pooling: str, tmp_path: Path) -> None:
    from peft import PeftModel

    reference, model = both(tmp_path / "base", classifier_pooling=pooling)
    apply(model, PromptTuning(5))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_adapter(model, tmp_path / "adapter")
        wrapped = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
        ids = ragged(LENGTHS)
        logits = model(pack(ids, config=model.config))
        assert largest(logits, wrapped(**padded(ids, 0)).logits) < 1e-5


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (BitFit(), "BitFit trains biases, but this modernbert model has none"),
        (BitFit(targets=("query",)), "BitFit trains biases, but this modernbert model has none"),
        (Pfeiffer(), "pfeiffer does not work with model_type modernbert: its layers normalize their input"),
        (PrefixTuning(2), "prefix_tuning does not work with model_type modernbert: its attention rotates each key"),
    ],
    ids=str,
)
def test_a_method_without_meaning_raises_with_the_reason(method: Any, reason: str, tmp_path: Path) -> None:
    _, model = both(tmp_path)
    with pytest.raises(MinipeftError, match=reason):
        apply(model, method)


# --------------------------------------------------------------------------------------------------------- config.json


PUBLISHED = {  # what the config.json of the published ModernBERT says of what differs from other families
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "vocab_size": 50368,
}


@pytest.mark.parametrize("change", [{}, {"global_attn_every_n_layers": 5, "local_rope_theta": 7.0}], ids=str)
def test_config_reads_as_in_transformers_in_the_old_and_the_new_form(change: dict[str, Any], tmp_path: Path) -> None:
    from transformers import ModernBertConfig as Theirs

    content = {"model_type": "modernbert", **PUBLISHED, **change}
    (tmp_path / "config.json").write_text(json.dumps(content))
    ours, theirs = load_config(tmp_path), Theirs.from_pretrained(tmp_path)
    assert isinstance(ours, ModernBertConfig) and ours.max_length == 8192 and ours.position_offset == 0
    for name in (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("pad_token_id", "initializer_range", "classifier_pooling", "classifier_dropout", "local_attention"),
        *("embedding_dropout", "norm_bias", "mlp_bias", "attention_bias", "classifier_activation", "classifier_bias"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    kinds = ["sliding_attention" if n % ours.global_attn_every_n_layers else "full_attention" for n in range(22)]
    assert kinds == theirs.layer_types
    theirs.save_pretrained(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "rope_parameters" in written and "global_rope_theta" not in written
    assert load_config(tmp_path / "new") == ours
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(ours.to_dict()))
    again = Theirs.from_pretrained(tmp_path / "ours")
    assert (again.rope_parameters, again.layer_types) == (theirs.rope_parameters, theirs.layer_types)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"classifier_activation": "tanh"}, "classifier_activation"),
        ({"hidden_activation": "swish"}, "hidden_act"),
        ({"mlp_bias": "no"}, "mlp_bias 'no' is not true or false"),
        ({"global_rope_theta": 0}, "global_rope_theta 0 is not a number above 1"),
        ({"local_rope_theta": None}, "local_rope_theta None is not a number above 1"),
        ({"embedding_dropout": 1.0}, "embedding_dropout 1.0 is not a probability"),
        ({"local_attention": 0}, "local_attention 0 is not a whole number of 1 or more"),
        ({"local_attention": 1}, "local_attention 2 or more"),
        ({"num_attention_heads": 256}, "even size of the heads"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling .* is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type 'yarn' is not supported"),
        ({"layer_types": ["sliding_attention"] * 22}, "layer_types .* is not supported"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types .* is not supported"),
    ],
    ids=str,
)
def test_an_unsupported_config_raises_with_the_name_of_the_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert", **PUBLISHED, **change}))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_the_head_of_a_language_model_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    language_model = reference_model("modernbert", kind="language model")
    language_model.save_pretrained(tmp_path)
    with caplog.at_level("INFO", "minipeft"):
        model = load_pretrained(tmp_path, num_labels=3)
    assert "head.out_proj newly initialized" in caplog.text and "head.dense" not in caplog.text
    assert torch.equal(model.head.dense.weight, language_model.head.dense.weight)


# -------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ModernBERT with mean pooling, as transformers writes it, and a tokenizer."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    train_tokenizer(generate("rte", "train")["sentence1"], 500, folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    reference_model("modernbert", vocab_size=500, classifier_pooling="mean", **sizes).save_pretrained(folder)
    return folder


def test_a_run_on_real_rte_is_saved_predicts_and_merges(tiny: Path, tmp_path: Path) -> None:
    assert check_run(tiny, tmp_path).model.method.targets == ("qkv",)


def test_bitfit_is_refused_in_one_line_and_leaves_nothing(
    tiny: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--task", "rte", "--method", "bitfit", "--model", tiny, "--data", small_data]
    error = refused([*arguments, "--output", tmp_path / "run", "--device", "cpu"], tmp_path, capsys)
    assert "BitFit trains biases" in error and "Use layernorm or lora" in error


def test_a_step_of_2048_tokens_with_activation_checkpointing_trains(tmp_path: Path) -> None:
    _, model = both(tmp_path, max_position_embeddings=2048)
    check_activation_checkpointing(apply(model, LoRA(rank=2)), ragged((2048, 5)))
