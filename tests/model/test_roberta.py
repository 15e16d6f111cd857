"""The encoder and its heads against transformers: logits, hidden states, gradients, dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model
from scipy.stats import ks_2samp
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from minipeft import BitFit, Full, apply, load_pretrained, pack
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.language_model import load_language_model
from minipeft.model.pretrained import tensor_names

LENGTHS = (7, 1, 40, 3, 129, 7, 2, 64)
FAMILIES = ("roberta", "xlm-roberta", "camembert", "bert")
BASE = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50265,
    "num_hidden_layers": 2,
}
LARGE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 50265,
    "num_hidden_layers": 2,
}


def both(
    folder: Path, model_type: str = "roberta", num_labels: int = 2, **shape: Any
) -> tuple[Any, SequenceClassifier]:
    """transformers' model with random weights, and ours with the same."""
    reference = reference_model(model_type, num_labels, **shape)
    reference.save_pretrained(folder)
    return reference, load_pretrained(folder, num_labels).eval()


def bert_pairs(count: int, vocab_size: int) -> list[Encoding]:
    """Random pairs of sentences as Encodings, with bert's token types."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w2 $A w3", pair="w2 $A w3 $B:1 w3:1", special_tokens=[("w2", 2), ("w3", 3)]
    )
    firsts, seconds = ragged(range(1, count + 1), vocab_size), ragged(range(count, 0, -1), vocab_size, seed=1)
    return tokenizer.encode_batch(
        [(" ".join(f"w{i}" for i in a), " ".join(f"w{i}" for i in b)) for a, b in zip(firsts, seconds, strict=True)]
    )


@pytest.mark.parametrize(
    ("model_type", "num_labels", "shape"),
    [
        ("roberta", 2, {}),
        ("roberta", 1, {"num_attention_heads": 1}),
        ("roberta", 2, {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 33}),
        ("roberta", 3, {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "layer_norm_eps": 1e-12}),
        ("roberta", 2, {"pad_token_id": 4}),
        ("roberta", 2, {"type_vocab_size": 2}),
        ("xlm-roberta", 3, {}),
        ("camembert", 2, {}),
        ("bert", 2, {}),
        ("bert", 5, {"hidden_size": 49, "num_attention_heads": 7}),
    ],
)
@torch.no_grad()
def test_logits_equal_transformers(model_type: str, num_labels: int, shape: dict[str, Any], tmp_path: Path) -> None:
    reference, model = both(tmp_path, model_type, num_labels, **shape)
    ids = ragged(LENGTHS)
    logits = model(pack(ids, config=model.config))
    assert logits.std() > 0.1  # the comparison is not one of zeros
    assert largest(logits, reference(**padded(ids, model.config.pad_token_id)).logits) < 1e-5


@pytest.mark.parametrize("shape", [BASE, pytest.param(LARGE, marks=pytest.mark.full)], ids=["base", "large"])
@torch.no_grad()
def test_logits_equal_transformers_at_full_width_from_1_to_512_tokens(shape: dict[str, Any], tmp_path: Path) -> None:
    reference, model = both(tmp_path, **shape)
    ids = ragged((1, 512, 71, 14, 300), shape["vocab_size"])
    logits = model(pack(ids, config=model.config))
    assert logits.std() > 0.1
    assert largest(logits, reference(**padded(ids)).logits) < 1e-5


@torch.no_grad()
def test_logits_with_token_types_equal_transformers(tmp_path: Path) -> None:
    reference, model = both(tmp_path, "bert")
    encodings = bert_pairs(9, model.config.vocab_size)
    ids = [encoding.ids for encoding in encodings]
    logits = model(pack(encodings, config=model.config))
    inputs = padded(ids, 0, [encoding.type_ids for encoding in encodings])
    assert largest(logits, reference(**inputs).logits) < 1e-5
    assert largest(logits, model(pack(ids, config=model.config))) > 1e-3  # types matter


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
@torch.no_grad()
def test_every_length_from_1_to_512_gives_the_same_logits_alone_and_in_transformers(
    model_type: str, tmp_path: Path
) -> None:
    reference, model = both(tmp_path, model_type, num_hidden_layers=1)
    ids = ragged((*range(1, 24), 255, 256, 257, 400, 510, 511, 512))
    together = model(pack(ids, config=model.config))
    alone = torch.cat([model(pack([sequence], config=model.config)) for sequence in ids])
    assert largest(together, alone) < 1e-5
    assert largest(together, reference(**padded(ids, model.config.pad_token_id)).logits) < 1e-5


@torch.no_grad()
def test_the_order_of_a_batch_is_the_order_of_its_logits(checkpoint: Path) -> None:
    model = load_pretrained(checkpoint).eval()
    ids = ragged(LENGTHS)
    logits = model(pack(ids, config=model.config))
    assert largest(logits.flip(0), model(pack(ids[::-1], config=model.config))) < 1e-5


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_hidden_states_of_every_token_equal_transformers(model_type: str, tmp_path: Path) -> None:
    reference, model = both(tmp_path, model_type)
    ids = ragged(LENGTHS)
    hidden = model.encoder(pack(ids, config=model.config))
    encoder = reference.bert if model_type == "bert" else reference.roberta
    expected = encoder(**padded(ids, model.config.pad_token_id)).last_hidden_state
    expected = torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)])
    assert largest(hidden, expected) < 1e-5


def test_the_last_layer_for_first_tokens_alone_equals_the_full_one_forward_and_backward(checkpoint: Path) -> None:
    model = load_pretrained(checkpoint).eval()
    batch = pack(ragged(LENGTHS), config=model.config)
    grads = []
    outputs = (model.encoder(batch, first_only=True), model.encoder(batch)[batch.cu_seqlens[:-1].long()])
    for hidden in outputs:
        hidden.sin().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.encoder.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert largest(*outputs) < 1e-5
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert largest(grad, grads[1][name]) < 1e-4 * max(1.0, float(grad.abs().max())), name


def compare_gradients(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], names: dict[str, str]) -> None:
    """Within 1e-4 of each tensor's largest; of the query's for key biases, whose gradient is 0 but for rounding."""
    for name, mine in ours.items():
        grad = theirs[names[name]]
        assert mine is not None and grad is not None, name
        scale = theirs[names[name].replace(".key.bias", ".query.bias")]
        assert scale is not None and largest(mine, grad) < 1e-4 * float(scale.abs().max()), name


@pytest.mark.parametrize("method", [Full(), BitFit()], ids=["full", "bitfit"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_equal_transformers(model_type: str, method: Any, tmp_path: Path) -> None:
    reference, model = both(tmp_path, model_type)
    apply(model, method)
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    torch.nn.functional.cross_entropy(model(pack(ids, config=model.config)), labels).backward()
    reference(**padded(ids, model.config.pad_token_id), labels=labels).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    names = tensor_names(model, model.config)
    compare_gradients(ours, theirs, names)
    if method == Full():
        assert sorted(names[name] for name in ours) == sorted(theirs)
    else:
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_masked_language_model_logits_equal_transformers(model_type: str, tmp_path: Path) -> None:
    reference = reference_model(model_type, kind="language model")
    reference.save_pretrained(tmp_path)
    model = load_language_model(tmp_path).eval()
    ids = ragged(LENGTHS)
    batch = pack(ids, config=model.config)
    expected = reference(**padded(ids, model.config.pad_token_id)).logits
    expected = torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)])
    logits = model(batch)
    assert largest(logits, expected) < 1e-5
    masked = torch.tensor([0, 5, 8, batch.total_tokens - 1])
    assert largest(model(batch, masked), logits[masked]) < 1e-5


DROPOUTS = {
    "hidden": {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0},
    "attention": {"attention_probs_dropout_prob": 0.4},
    "classifier": {"classifier_dropout": 0.4},
    "classifier by default": {"hidden_dropout_prob": 0.3},
}


def draws(model: Any, ids: list[list[int]], count: int, seed: int) -> Tensor:
    """Logits of one sequence, `count` times with dropout of its own: (count,)."""
    torch.manual_seed(seed)
    model.train()
    if isinstance(model, SequenceClassifier):
        return model(pack(ids * count, config=model.config))[:, 0]
    return model(**padded(ids * count, model.config.pad_token_id)).logits[:, 0]


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
@pytest.mark.parametrize("dropout", DROPOUTS)
@torch.no_grad()
def test_dropout_in_training_spreads_the_logits_as_in_transformers(
    model_type: str, dropout: str, tmp_path: Path
) -> None:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    reference, model = both(tmp_path, model_type, num_hidden_layers=1, **none | DROPOUTS[dropout])
    ids = ragged((6,))
    ours, theirs = draws(model, ids, 4000, seed=1), draws(reference, ids, 4000, seed=2)
    assert ours.std() > 0.02
    assert ks_2samp(ours, theirs).pvalue > 1e-3
    assert largest(ours, draws(model, ids, 4000, seed=1)) == 0  # the seed decides
    assert ks_2samp(ours, draws(model.eval(), ids, 4000, seed=3)).pvalue > 1e-3


@torch.no_grad()
def test_the_comparison_of_dropout_tells_another_probability(tmp_path: Path) -> None:
    none = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1}
    _, model = both(tmp_path, **none)
    reference = reference_model(**none | {"hidden_dropout_prob": 0.2})
    assert ks_2samp(draws(model, ragged((6,)), 4000, 1), draws(reference, ragged((6,)), 4000, 2)).pvalue < 1e-6


@torch.no_grad()
def test_evaluation_has_no_dropout(checkpoint: Path) -> None:
    model = load_pretrained(checkpoint).eval()
    batch = pack(ragged(LENGTHS), config=model.config)
    assert largest(model(batch), model(batch)) == 0


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_in_transformers_and_logits_stay_float32(
    model_type: str, tmp_path: Path
) -> None:
    reference, model = both(tmp_path, model_type)
    half = load_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = ragged(LENGTHS)
    exact, logits = model(pack(ids, config=model.config)), half(pack(ids, config=half.config))
    assert half.encoder(pack(ids, config=half.config)).dtype == torch.bfloat16
    theirs = reference.to(torch.bfloat16)(**padded(ids, model.config.pad_token_id)).logits.float()
    assert 0 < largest(logits, exact) < max(0.02, 1.5 * largest(theirs, exact))


def test_what_trains_is_float32_over_bfloat16_weights(checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint, dtype=torch.bfloat16), BitFit())
    model(pack(ragged(LENGTHS), config=model.config)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        assert parameter.grad is None or parameter.grad.dtype == torch.float32, name
