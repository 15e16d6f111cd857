"""Prompt and prefix tuning: peft's own numbers forward, backward and over 20 steps; files, room and starting values."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import forget_details, largest, padded, ragged, reference_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_agreement import LENGTHS, logits
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minipeft import (
    EncoderConfig,
    MinipeftError,
    PrefixTuning,
    PromptTuning,
    SequenceClassifier,
    apply,
    export,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
)
from minipeft.adapters.save import adapter_tensors
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

FAMILIES = ["roberta", "xlm-roberta", "bert"]
METHODS = [PromptTuning(5), PrefixTuning(5)]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
both_methods = pytest.mark.parametrize("method", METHODS, ids=["prompt", "prefix"])


def with_peft(
    folder: Path, method: Any, model_type: str = "roberta", options: dict[str, Any] | None = None, **shape: Any
) -> tuple[Any, SequenceClassifier]:
    """A model that peft has wrapped, and ours, loaded from the adapter that peft saves at its start."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    kind = PromptTuningConfig if isinstance(method, PromptTuning) else PrefixTuningConfig
    reference = reference_model(model_type, **shape)
    reference.save_pretrained(folder / "base")
    config = kind(task_type="SEQ_CLS", num_virtual_tokens=method.num_virtual_tokens, **options or {})
    torch.manual_seed(1)
    wrapped = get_peft_model(reference, config).eval()
    wrapped.save_pretrained(folder / "peft")
    return wrapped, load_adapter(load_pretrained(folder / "base"), folder / "peft").eval()


def their_logits(wrapped: Any) -> Tensor:
    with torch.no_grad():
        return wrapped.eval()(**padded(ragged(LENGTHS), wrapped.config.pad_token_id)).logits


def trained(folder: Path, method: Any, **options: Any) -> SequenceClassifier:
    """The checkpoint in `folder` with the method, everything that trains moved at random."""
    model = load_pretrained(folder, **options)
    torch.manual_seed(2)
    apply(model, method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------------------------------------------------- with peft


@both_methods
@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_and_gradients_equal_peft(model_type: str, method: Any, tmp_path: Path) -> None:
    wrapped, model = with_peft(tmp_path, method, model_type)
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    ours = model(pack(ids, config=model.config))
    theirs = wrapped(**padded(ids, model.config.pad_token_id), labels=labels)
    assert largest(ours, theirs.logits) < 1e-5
    plain = load_pretrained(tmp_path / "base").eval()(pack(ids, config=model.config))
    assert largest(ours, plain) > 1e-2  # the virtual tokens are seen
    F.cross_entropy(ours, labels).backward()
    theirs.loss.backward()
    grad = model.encoder.virtual_tokens.prompt_embeddings.grad  # type: ignore[union-attr]
    expected = wrapped.prompt_encoder["default"].embedding.weight.grad
    assert isinstance(grad, Tensor) and bool((expected != 0).any(dim=1).all())
    assert largest(grad, expected) < 1e-4 * float(expected.abs().max())


@both_methods
@torch.no_grad()
def test_token_types_of_pairs_stay_with_their_tokens(method: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({"w": 7, "[CLS]": 8, "v": 9}, unk_token="w"))
    tokenizer.post_processor = TemplateProcessing(pair="[CLS]:0 $A:0 $B:1", special_tokens=[("[CLS]", 8)])
    encodings = [tokenizer.encode(["w"] * 3, ["v"] * 5, is_pretokenized=True) for _ in range(2)]
    encodings.append(tokenizer.encode(["w"], ["v"], is_pretokenized=True))
    wrapped, model = with_peft(tmp_path, method, "bert")
    inputs = padded([e.ids for e in encodings], 0, [e.type_ids for e in encodings])
    batch = pack(encodings, config=model.config)
    assert batch.token_type_ids is not None
    assert largest(model(batch), wrapped(**inputs).logits) < 1e-5


@both_methods
def test_20_steps_of_training_equal_peft(method: Any, tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict

    steps, rate = 20, 5e-3
    wrapped, model = with_peft(tmp_path, method, **NO_DROPOUT)
    wrapped.train(), model.train()
    start = adapter_tensors(model)["prompt_embeddings"].detach().clone()
    optimizer = adamw(model, weight_decay=0.01)
    set_learning_rate(optimizer, rate)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    for step in range(steps):
        ids = ragged((3, 17, 1, 30, 8, 8), seed=step)
        labels = [sequence[0] % 2 for sequence in ids]
        batch = pack(ids, labels, config=model.config)
        assert batch.labels is not None
        loss = F.cross_entropy(model(batch), batch.labels, reduction="sum") / len(batch)
        expected = wrapped(**padded(ids), labels=torch.tensor(labels)).loss
        assert largest(loss.detach(), expected.detach()) < 1e-4, step
        for total, parameters, how in (
            (loss, [p for p in model.parameters() if p.requires_grad], optimizer),
            (expected, trained, reference),
        ):
            total.backward()
            clip_grad_norm_(parameters, 1.0)
            how.step()
            how.zero_grad()
    ours, theirs = adapter_tensors(model), get_peft_model_state_dict(wrapped)
    assert ours.keys() == theirs.keys() and largest(ours["prompt_embeddings"].detach(), start) > 1e-2
    for name, tensor in ours.items():
        assert largest(tensor.detach(), theirs[name]) < 1e-4, name


@both_methods
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_saved_adapter_opens_in_peft_with_the_same_logits(model_type: str, method: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    reference = reference_model(model_type)
    reference.save_pretrained(tmp_path / "base")
    model = trained(tmp_path / "base", method)
    save_adapter(model, tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(reference, tmp_path / "adapter")
    assert largest(logits(model), their_logits(wrapped)) < 1e-5
    wrapped.save_pretrained(tmp_path / "again")  # what peft writes has the same tensors under the same names
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "again"))
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (PromptTuning(4, init="vocabulary"), {"prompt_tuning_init": "SAMPLE_VOCAB"}),
        (PrefixTuning(4), {"prefix_projection": True, "encoder_hidden_size": 17}),
        (PrefixTuning(4), {"init_weights": "zero"}),
    ],
    ids=["vocabulary", "projection", "zero"],
)
def test_other_adapters_that_peft_saves_load_with_the_same_logits(
    method: Any, options: dict[str, Any], model_type: str, tmp_path: Path
) -> None:
    wrapped, model = with_peft(tmp_path, method, model_type, options)
    assert model.method == method
    assert largest(logits(model), their_logits(wrapped)) < 1e-5


# -------------------------------------------------------------------------------------------------------- in the model


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), number=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_prompt_makes_the_batch_that_packing_longer_sequences_makes(lengths: list[int], number: int) -> None:
    config = EncoderConfig(vocab_size=300, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    model = apply(SequenceClassifier(config), PromptTuning(number))
    prompt, ids = model.encoder.virtual_tokens, ragged(lengths)
    assert prompt is not None
    batch = pack(ids, config=config)
    longer, words, _ = prompt(batch, model.encoder.word_embeddings(batch.input_ids), None)
    expected = pack([[0] * number + sequence for sequence in ids], config=config)
    for name in ("input_ids", "position_ids", "cu_seqlens"):
        assert torch.equal(getattr(longer, name), getattr(expected, name)), name
        assert getattr(longer, name).dtype == getattr(expected, name).dtype, name
    assert longer.max_seqlen == expected.max_seqlen and longer.lengths == expected.lengths
    for start, end, own in zip(longer.cu_seqlens[:-1].tolist(), longer.cu_seqlens[1:].tolist(), ids, strict=True):
        assert torch.equal(words[start : start + number], prompt.prompt_embeddings)
        assert torch.equal(words[start + number : end], model.encoder.word_embeddings(torch.tensor(own)))


@both_methods
def test_the_last_layer_for_first_tokens_alone_equals_the_full_one(method: Any, checkpoint: Path) -> None:
    model = trained(checkpoint, method)
    batch = pack(ragged(LENGTHS), config=model.config)
    every = model.encoder(batch)
    added = method.num_virtual_tokens if isinstance(method, PromptTuning) else 0
    assert len(every) == sum(LENGTHS) + added * len(LENGTHS)
    firsts = batch.cu_seqlens[:-1].long() + added * torch.arange(len(LENGTHS))
    assert largest(model.encoder(batch, first_only=True), every[firsts]) < 1e-5


@both_methods
def test_bfloat16_weights_keep_what_trains_and_its_gradient_in_float32(method: Any, checkpoint: Path) -> None:
    half = trained(checkpoint, method, dtype=torch.bfloat16)
    assert largest(logits(half), logits(trained(checkpoint, method))) < 0.1
    half.train()(pack(ragged(LENGTHS), config=half.config)).sum().backward()
    for name, parameter in half.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (parameter.dtype == torch.float32), name


@both_methods
def test_a_copy_is_independent(method: Any, checkpoint: Path) -> None:
    model = trained(checkpoint, method)
    before, twin = logits(model), copy.deepcopy(model)
    assert torch.equal(logits(twin), before)
    with torch.no_grad():
        twin.encoder.virtual_tokens.prompt_embeddings.zero_()  # type: ignore[union-attr]
    assert not torch.equal(logits(twin), before) and torch.equal(logits(model), before)


@both_methods
def test_it_cannot_be_merged(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    model = trained(checkpoint, method)
    for call in (lambda: merge(model), lambda: export(model, tmp_path / "out")):
        with pytest.raises(MinipeftError, match=r"num_virtual_tokens=5.*cannot be merged"):
            call()
    assert not (tmp_path / "out").exists()


@both_methods
def test_virtual_tokens_and_text_share_the_position_table(method: Any, tmp_path: Path) -> None:
    reference_model(max_position_embeddings=34).save_pretrained(tmp_path)  # 32 positions
    model = apply(load_pretrained(tmp_path), method)
    assert model(pack(ragged((3, 27)), config=model.config)).isfinite().all()
    message = r"sequence 1 has 28 tokens, but 5 virtual ones .* takes 32 in all: set max_length to 27$"
    with pytest.raises(MinipeftError, match=message):
        model(pack(ragged((3, 28)), config=model.config))
    with pytest.raises(MinipeftError, match=r"num_virtual_tokens 32 leaves none of the model's 32 positions"):
        apply(load_pretrained(tmp_path), type(method)(32))


# ----------------------------------------------------------------------------------------------- settings and starting


@pytest.mark.parametrize("kind", [PromptTuning, PrefixTuning])
@pytest.mark.parametrize("number", [0, -1, 2.5, "20", None, True])
def test_a_bad_number_is_refused_by_name(kind: Any, number: Any) -> None:
    with pytest.raises(MinipeftError, match=rf"num_virtual_tokens {number!r} is not a whole number of 1 or more"):
        kind(num_virtual_tokens=number)


def test_an_unknown_init_is_refused_by_name() -> None:
    with pytest.raises(MinipeftError, match="unknown init 'text'; one of random, vocabulary"):
        PromptTuning(init="text")


@pytest.mark.parametrize("kind", [PromptTuning, PrefixTuning])
def test_it_starts_normal_as_in_peft(kind: Any, checkpoint: Path) -> None:
    torch.manual_seed(0)
    model = apply(load_pretrained(checkpoint), kind(400))
    start = next(p for name, p in model.named_parameters() if name.endswith("prompt_embeddings")).detach()
    assert abs(float(start.mean())) < 5 / start.numel() ** 0.5
    assert abs(float(start.std()) - 1) < 5 / (2 * start.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_from_the_vocabulary_starts_as_words(dtype: torch.dtype, checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint, dtype=dtype), PromptTuning(20, init="vocabulary"))
    prompt = next(p for name, p in model.named_parameters() if name.endswith("prompt_embeddings"))
    words = model.encoder.word_embeddings.weight.float()
    assert prompt.dtype == torch.float32
    assert all(bool((words == row).all(dim=1).any()) for row in prompt)
    assert len({tuple(row.tolist()) for row in prompt}) > 10


# -------------------------------------------------------------------------------------------- files that do not fit


@both_methods
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_virtual_tokens", 0, "num_virtual_tokens 0"),
        ("num_virtual_tokens", None, "num_virtual_tokens None"),
        ("num_virtual_tokens", 4, r"prompt_embeddings has shape \(5, "),
        ("token_dim", 64, "token_dim 64 is not the model's 48"),
        ("num_layers", 2, "num_layers 2 is not the model's 3"),
        ("num_attention_heads", 4, "num_attention_heads 4 is not the model's 3"),
        ("num_transformer_submodules", 2, "num_transformer_submodules 2"),
        ("surprise", 1, "surprise 1 is not supported"),
        ("peft_type", "P_TUNING", "unknown peft_type 'P_TUNING'"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_name(
    field: str, value: Any, message: str, method: Any, checkpoint: Path, tmp_path: Path
) -> None:
    save_adapter(trained(checkpoint, method), tmp_path / "adapter")
    path = tmp_path / "adapter" / CONFIG
    forget_details(path.parent)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_adapter(load_pretrained(checkpoint), tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_unknown_start_in_a_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(trained(checkpoint, PromptTuning(5)), tmp_path / "adapter")
    path = tmp_path / "adapter" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt_tuning_init": "NOISE"}))
    with pytest.raises(MinipeftError, match="prompt_tuning_init 'NOISE' is not supported; RANDOM, SAMPLE_VOCAB, TEXT"):
        load_adapter(load_pretrained(checkpoint), tmp_path / "adapter")


@both_methods
def test_a_missing_and_an_unused_tensor_are_named(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(trained(checkpoint, method), tmp_path / "adapter")
    path = tmp_path / "adapter" / WEIGHTS
    state = load_file(path)
    for change, message in (
        ({name: state[name] for name in state if name != "prompt_embeddings"}, "prompt_embeddings is missing"),
        (state | {"base_model.extra": torch.zeros(1)}, r"nothing uses tensor base_model\.extra"),
    ):
        save_file(change, path)
        with pytest.raises(MinipeftError, match=message):
            load_adapter(load_pretrained(checkpoint), tmp_path / "adapter")


@both_methods
def test_every_field_of_pefts_config_is_either_understood_or_known_to_change_nothing(method: Any) -> None:
    """A field that a later peft adds shows here, and is refused in a file that uses it."""
    import dataclasses

    from peft import PrefixTuningConfig, PromptTuningConfig

    from minipeft.methods.peft_format.reading import WITHOUT_EFFECT
    from minipeft.methods.virtual_tokens import PREFIX_FIELDS, PROMPT_FIELDS, shape_fields

    prompt = isinstance(method, PromptTuning)
    names = {field.name for field in dataclasses.fields(PromptTuningConfig if prompt else PrefixTuningConfig)}
    known = {*(PROMPT_FIELDS if prompt else PREFIX_FIELDS), *shape_fields(5, EncoderConfig())}
    assert names - WITHOUT_EFFECT == known
