"""The registry of methods: what each trains, how much that is, and what cannot be applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ragged
from safetensors.torch import load_file

from minipeft import (
    IA3,
    AdaLoRA,
    BitFit,
    DoRA,
    EncoderConfig,
    Full,
    Head,
    Houlsby,
    LayerNormTuning,
    LoRA,
    MinipeftError,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    SequenceClassifier,
    VeRA,
    apply,
    count_parameters,
    load_pretrained,
    pack,
    save_adapter,
)
from minipeft.methods import METHODS, get_method, method_name
from minipeft.model.families import LINEAR_NAMES

CLOSE = [Houlsby(size=4), Pfeiffer(size=4)]  # these start close to the pretrained function: see their own tests
VIRTUAL = [PromptTuning(3), PrefixTuning(3)]  # these are seen from the start
ALL = [
    Full(),
    Head(),
    BitFit(),
    LoRA(rank=2),
    DoRA(rank=2),
    IA3(),
    LayerNormTuning(),
    VeRA(rank=4, save_projection=False),
    AdaLoRA(1, 3),
    *CLOSE,
    *VIRTUAL,
]
ADDING = (LoRA, IA3, VeRA, PromptTuning, PrefixTuning)  # these add parameters; the others train the encoder's own


def meta(config: EncoderConfig, method: Any) -> SequenceClassifier:
    """A model without numbers: only shapes."""
    with torch.device("meta"):
        return apply(SequenceClassifier(config), method)


# The shape of roberta-base: 12 layers of 768 and 3,072; each count is written out from its formula.
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (LoRA(rank=2), 73_728),  # 12 layers · 2 targets · 2 · (768 + 768)
        (LoRA(rank=8, targets=LINEAR_NAMES), 12 * 8 * (4 * 2 * 768 + 2 * (768 + 3072))),
        (LoRA(rank=8, targets=("all",)), 12 * 8 * (4 * 2 * 768 + 2 * (768 + 3072))),
        (IA3(targets=("all",)), 12 * (3 * 768 + 768 + 3072 + 3072)),
        (DoRA(rank=2), 92_160),  # LoRA's and 12 layers · 2 targets · 768
        (BitFit(), 102_144),  # 12 · 11 · 768 + 768
        (PromptTuning(20), 15_360),  # 20 · 768
        (PrefixTuning(20), 368_640),  # 20 · 12 · 2 · 768
        (IA3(), 55_296),  # 12 · (768 + 768 + 3,072)
        (IA3(targets=LINEAR_NAMES), 12 * (3 * 768 + 768 + 3072 + 3072)),
        (VeRA(), 24_576),  # 12 · 2 · (256 + 768)
        (VeRA(rank=1024), 43_008),  # the paper's table 1: 0.043 million
        (VeRA(rank=4, targets=LINEAR_NAMES), 12 * (6 * 4 + 5 * 768 + 3072)),
        (LayerNormTuning(), 38_400),  # 12 · 4 · 768 + 2 · 768
        (LayerNormTuning(("attention",)), 18_432),  # 12 · 2 · 768
        (BitFit(targets=("query", "intermediate")), 46_080),  # 12 · (768 + 3,072)
        (Head(), 0),
        (Full(), 124_055_040),  # (50,265 + 514 + 1) · 768 + 2 · 768 + 12 · 7,087,872
    ],
)
def test_counts_on_roberta_base_are_those_of_the_papers(method: Any, expected: int) -> None:
    count = count_parameters(meta(EncoderConfig(), method))
    assert count.method == expected
    assert count.head == 592_130  # 768 · 768 + 768 + 768 · 2 + 2
    assert count.total == 124_055_040 + 592_130 + (expected if isinstance(method, ADDING) else 0)


def test_key_biases_of_roberta_base() -> None:
    model = meta(EncoderConfig(), BitFit())
    keys = [p for name, p in model.named_parameters() if name.endswith("key.bias") and p.requires_grad]
    assert sum(p.numel() for p in keys) == 9_216  # 12 · 768


def test_the_counts_are_those_of_transformers_and_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    with torch.device("meta"):
        config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
        theirs = RobertaForSequenceClassification(config)
    biases = sum(p.numel() for name, p in theirs.roberta.named_parameters() if name.endswith(".bias"))
    assert biases == count_parameters(meta(EncoderConfig(), BitFit())).method
    assert sum(p.numel() for p in theirs.parameters()) == count_parameters(meta(EncoderConfig(), Full())).total
    wrapped = get_peft_model(theirs, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    ours = count_parameters(meta(EncoderConfig(), LoRA(rank=2)))
    assert wrapped.get_nb_trainable_parameters()[0] == ours.method + ours.head


@pytest.mark.parametrize("method", ALL, ids=str)
def test_a_saved_file_holds_as_many_numbers_as_are_counted(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), method)
    save_adapter(model, tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    count, (hidden, inner, layers) = count_parameters(model), (48, 80, 3)
    in_head = sum(tensor.numel() for name, tensor in state.items() if ".classifier." in name)
    assert in_head == count.head == hidden * hidden + hidden + 2 * hidden + 2
    encoder = (
        (300 + 514 + 1) * hidden
        + 2 * hidden
        + layers * (4 * hidden * (hidden + 1) + hidden * inner + inner + inner * hidden + hidden + 4 * hidden)
    )
    expected = {
        "full": encoder,
        "head": 0,
        "bitfit": hidden + layers * (7 * hidden + inner),
        "lora": layers * 2 * 2 * 2 * hidden,
        "prompt_tuning": 3 * hidden,
        "prefix_tuning": 3 * layers * 2 * hidden,
        "adalora": layers * 3 * (4 * (2 * hidden + 1) + 2 * (hidden + inner + 1)),
        "houlsby": layers * (2 * (2 * 4 * hidden + 4 + hidden) + 4 * hidden) + 2 * hidden,
        "pfeiffer": layers * (2 * 4 * hidden + 4 + hidden),
        "dora": layers * 2 * 5 * hidden,
        "ia3": layers * (2 * hidden + inner),
        "vera": layers * 2 * (4 + hidden),
        "layernorm": 2 * hidden + layers * 4 * hidden,
    }[method_name(method)]
    assert sum(tensor.numel() for tensor in state.values()) - in_head == count.method == expected


@pytest.mark.parametrize("method", ALL, ids=str)
def test_what_trains_is_what_a_step_moves(method: Any, checkpoint: Path) -> None:
    model = load_pretrained(checkpoint)
    assert apply(model, method) is model and model.method is method
    assert all(p.requires_grad for p in model.head.parameters())
    model(pack(ragged((7, 3)), config=model.config))[:, 0].sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("method", ALL, ids=str)
def test_a_method_prints_as_its_constructor_and_has_a_name(method: Any) -> None:
    assert eval(repr(method), {row.config.__name__: row.config for row in METHODS.values()}) == method
    assert get_method(method_name(method)) is type(method)


@pytest.mark.parametrize("method", [method for method in ALL if method not in CLOSE + VIRTUAL], ids=str)
def test_applying_changes_no_logits(method: Any, checkpoint: Path) -> None:
    model = load_pretrained(checkpoint).eval()
    batch = pack(ragged((7, 1, 12)), config=model.config)
    before = model(batch)
    assert torch.equal(apply(model, method)(batch), before)


@pytest.mark.parametrize("method", ALL, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_applying_keeps_the_model_in_training_or_in_evaluation(method: Any, training: bool, checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint).train(training), method)
    assert {module.training for module in model.modules()} == {training}


def test_an_unknown_method_and_a_second_one_are_refused(checkpoint: Path) -> None:
    with pytest.raises(MinipeftError, match="'adapter'; one of lora, dora, adalora, vera, bitfit"):
        get_method("adapter")
    model = load_pretrained(checkpoint)
    for wrong in ("lora", LoRA, None):
        with pytest.raises(MinipeftError, match=r"is not a method; make one of LoRA, DoRA, AdaLoRA, VeRA, BitFit"):
            apply(model, wrong)
    assert all(p.requires_grad for p in model.parameters())  # nothing was frozen
    apply(model, BitFit())
    with pytest.raises(MinipeftError, match=r"already has BitFit\(\)"):
        apply(model, LoRA())
