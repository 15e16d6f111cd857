"""Several adapters on one base, each sequence by its own: against loading them one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minipeft import (
    AdapterSet,
    BitFit,
    LoRA,
    MinipeftError,
    apply,
    load_adapter,
    load_pretrained,
    pack,
    save_adapter,
)
from minipeft.adapters.adapter_set import reorder

LENGTHS = (7, 1, 40, 3, 21, 7, 1, 12)
# name → (method, labels)
ADAPTERS: dict[str, tuple[LoRA, int]] = {
    "plain": (LoRA(rank=3, alpha=8), 2),
    "wide": (LoRA(rank=2, targets=("key", "output", "intermediate", "ffn_output")), 3),
    "few": (LoRA(rank=4, rslora=True, rank_pattern={"0": 0, "2.value": 1}), 2),
    "pissa": (LoRA(rank=2, init="pissa"), 2),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and next to it one adapter per name, moved at random."""
    folder = tmp_path_factory.mktemp("set")
    for model_type in ("roberta", "bert"):
        reference = reference_model(model_type)
        reference.save_pretrained(folder / model_type)
        for labels in (2, 3):
            sibling = reference_model(model_type, num_labels=labels)
            sibling.base_model.load_state_dict(reference.base_model.state_dict())
            sibling.save_pretrained(folder / f"{model_type}-{labels}")
        reference.save_pretrained(folder / f"{model_type}-2")
        torch.manual_seed(3)
        for name, (method, labels) in ADAPTERS.items():
            model = apply(load_pretrained(folder / f"{model_type}-{labels}", num_labels=labels), method)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn_like(parameter))
            save_adapter(model, folder / model_type / name)
    return folder


def loaded(base: Path, model_type: str = "roberta", **options: Any) -> AdapterSet:
    adapters = AdapterSet(load_pretrained(base / model_type, **options))
    for name in ADAPTERS:
        adapters.load(name, base / model_type / name)
    return adapters


def one_by_one(base: Path, names: list[str | None], ids: list[list[int]], model_type: str = "roberta") -> list[Tensor]:
    """Each sequence through a model of its own."""
    rows = []
    for name, sequence in zip(names, ids, strict=True):
        labels = 2 if name is None else ADAPTERS[name][1]
        model = load_pretrained(base / f"{model_type}-{labels}", num_labels=labels)
        if name is not None:
            load_adapter(model, base / model_type / name)
        with torch.no_grad():
            rows.append(model(pack([sequence], config=model.config))[0])
    return rows


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_each_sequence_goes_through_its_own_adapter(model_type: str, base: Path) -> None:
    adapters = loaded(base, model_type)
    names = ["wide", "plain", None, "few", "pissa", "plain", "wide", None]
    ids = ragged(LENGTHS)
    logits = adapters(pack(ids, config=adapters.model.config), names)
    assert logits.shape == (8, 3)
    for row, expected in zip(logits, one_by_one(base, names, ids, model_type), strict=True):
        assert largest(row[: len(expected)], expected) < 1e-5
        assert (row[len(expected) :] == -torch.inf).all()
    assert max(abs(float(a - b)) for a, b in zip(logits[0, :2], logits[1, :2], strict=True)) > 1e-3


def test_an_adapter_that_holds_no_head_takes_the_bases_own(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    reference = AutoModelForSequenceClassification.from_pretrained(base / "roberta")
    wrapped = get_peft_model(reference, LoraConfig(init_lora_weights=False)).eval()  # B random too
    wrapped.save_pretrained(tmp_path)
    adapters = AdapterSet(load_pretrained(base / "roberta"))
    adapters.load("headless", tmp_path)
    adapters.switch("headless")
    ids = ragged(LENGTHS)
    with torch.no_grad():
        expected = wrapped(**padded(ids)).logits
    logits = adapters(pack(ids, config=adapters.model.config))
    assert largest(logits, expected) < 1e-5
    adapters.switch(None)
    assert largest(adapters(pack(ids, config=adapters.model.config)), logits) > 1e-3


@given(names=st.lists(st.sampled_from([None, *ADAPTERS]), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_mix_equals_switching(base: Path, names: list[str | None], seed: int) -> None:
    adapters = loaded(base)
    lengths = torch.randint(1, 30, (len(names),), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = ragged(lengths, seed=seed)
    config = adapters.model.config
    together = adapters(pack(ids, config=config), names)
    for number, name in enumerate(names):
        adapters.switch(name)
        alone = adapters(pack([ids[number]], config=config))[0]
        assert largest(together[number, : len(alone)], alone) < 1e-5


def test_switching_and_disabling(base: Path) -> None:
    adapters = loaded(base)
    batch = pack(ragged(LENGTHS), config=adapters.model.config)
    untouched = adapters(batch)
    plain = load_pretrained(base / "roberta")
    with torch.no_grad():
        assert largest(untouched, plain(batch)) < 1e-6
    adapters.switch("wide")
    assert adapters(batch).shape == (8, 3)
    adapters.switch(None)
    assert torch.equal(adapters(batch), untouched)


def test_an_average_is_the_weighted_sum_of_updates_and_heads(base: Path) -> None:
    adapters = loaded(base)
    adapters.average("mean", {"plain": 0.25, "few": 0.75})
    ids = ragged(LENGTHS)
    summed = load_pretrained(base / "roberta")
    state = {name: torch.zeros_like(tensor) for name, tensor in summed.state_dict().items()}
    for name, weight in (("plain", 0.25), ("few", 0.75)):
        part = load_adapter(load_pretrained(base / "roberta"), base / "roberta" / name)
        from minipeft import merge

        for key, tensor in merge(part).state_dict().items():
            if key in state:
                state[key] += weight * tensor
    summed.load_state_dict(state)
    batch = pack(ids, config=summed.config)
    with torch.no_grad():
        assert largest(adapters(batch, ["mean"] * 8), summed(batch)) < 1e-5
    with pytest.raises(MinipeftError, match="'wide' has the labels LABEL_0, LABEL_1, LABEL_2"):
        adapters.average("other", {"plain": 0.5, "wide": 0.5})


def test_bfloat16_weights_take_adapters_too(base: Path) -> None:
    adapters = loaded(base, dtype=torch.bfloat16)
    ids = ragged(LENGTHS)
    names: list[str | None] = ["plain", "few"] * 4
    logits = adapters(pack(ids, config=adapters.model.config), names)
    expected = torch.stack(one_by_one(base, names, ids))
    assert logits.dtype == torch.float32 and largest(logits, expected) < 0.1


def test_what_cannot_be_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    adapters = loaded(base)
    batch = pack(ragged((3, 4)), config=adapters.model.config)
    with pytest.raises(MinipeftError, match="no adapter 'nli'; loaded: plain, wide, few, pissa"):
        adapters(batch, ["nli", "plain"])
    with pytest.raises(MinipeftError, match="no adapter 'nli'"):
        adapters.switch("nli")
    with pytest.raises(MinipeftError, match="1 adapters for 2 sequences"):
        adapters(batch, ["plain"])
    with pytest.raises(MinipeftError, match="'plain' is taken"):
        adapters.load("plain", base / "roberta" / "plain")
    for name in ("train", "keys", "copy"):
        with pytest.raises(MinipeftError, match=f"'{name}' is a reserved name of torch's"):
            adapters.load(name, base / "roberta" / "plain")
    with pytest.raises(MinipeftError, match="takes LoRA of A and B alone, not BitFit"):
        save_adapter(apply(load_pretrained(base / "roberta"), BitFit()), tmp_path / "bitfit")
        adapters.load("bitfit", tmp_path / "bitfit")
    with pytest.raises(MinipeftError, match="adapter was trained on bert"):
        adapters.load("bert", base / "bert" / "plain")
    with pytest.raises(MinipeftError, match="without a method"):
        AdapterSet(apply(load_pretrained(base / "roberta"), LoRA()))
    assert adapters(batch, ["plain", None]).shape == (2, 2)  # what was refused has left no trace


def test_token_classifiers_are_refused_as_model_and_as_adapter(base: Path, tmp_path: Path) -> None:
    tokens = load_pretrained(base / "roberta", 3, problem_type="token_classification")
    with pytest.raises(MinipeftError, match="AdapterSet: the model classifies tokens"):
        AdapterSet(tokens)
    save_adapter(apply(tokens, LoRA()), tmp_path / "tags")
    with pytest.raises(MinipeftError, match="tags: the adapter classifies tokens"):
        loaded(base).load("tags", tmp_path / "tags")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.randoms())
def test_reordering_equals_packing_in_that_order(lengths: list[int], random: Any) -> None:
    from minipeft import EncoderConfig

    ids, labels = ragged(lengths), [number % 2 for number in range(len(lengths))]
    order = list(range(len(lengths)))
    random.shuffle(order)
    moved = reorder(pack(ids, labels, config=EncoderConfig()), order)
    expected = pack([ids[i] for i in order], [labels[i] for i in order], config=EncoderConfig())
    for name, value in vars(expected).items():
        ours = getattr(moved, name)
        assert torch.equal(ours, value) and ours.dtype == value.dtype if isinstance(value, Tensor) else ours == value
