"""Biases and whole modules that train in addition to a method, in peft's files both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model
from peft_agreement import LENGTHS, pair

from minipeft import IA3, AdaLoRA, LoRA, MinipeftError, VeRA, apply, load_pretrained, pack, save_adapter


def cases() -> dict[str, Callable[..., Any]]:
    from peft import AdaLoraConfig, IA3Config, LoraConfig, VeraConfig

    def adalora(**settings: Any) -> Any:
        return AdaLoraConfig(target_modules=["query", "value"], total_step=100, **settings)

    made: dict[str, Callable[..., Any]] = {}
    for name, kind in (("lora", LoraConfig), ("adalora", adalora)):
        for bias in ("all", "lora_only"):
            made[f"{name}-{bias}"] = lambda kind=kind, bias=bias, **rest: kind(bias=bias, **rest)
    for bias in ("all", "vera_only"):
        made[f"vera-{bias}"] = lambda bias=bias, **rest: VeraConfig(r=4, bias=bias, **rest)
    for name, kind in (("lora", LoraConfig), ("adalora", adalora), ("vera", VeraConfig), ("ia3", IA3Config)):
        made[f"{name}-LayerNorm"] = lambda modules_to_save, kind=kind, **rest: kind(
            modules_to_save=[*modules_to_save, "LayerNorm"], **rest
        )
    return made


@pytest.mark.parametrize("name", cases())
def test_peft_s_files_load_train_and_go_back(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    wrapped, model = pair(tmp_path, cases()[name])
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    theirs = [p for p in wrapped.parameters() if p.requires_grad]
    ours = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in theirs) == sum(p.numel() for p in ours)
    optimizers = [torch.optim.AdamW(side, lr=1e-3, weight_decay=0.0) for side in (ours, theirs)]
    for step in range(20):
        logits = model(pack(ids, config=model.config))
        their_logits = wrapped(**padded(ids)).logits
        assert largest(logits, their_logits) < (1e-5 if step == 0 else 1e-3)
        losses = [torch.nn.functional.cross_entropy(side, labels) for side in (logits, their_logits)]
        assert abs(losses[0].item() - losses[1].item()) < 1e-4
        for optimizer, loss in zip(optimizers, losses, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    save_adapter(model, tmp_path / "ours")
    again = PeftModel.from_pretrained(reference_model(), tmp_path / "ours").eval()
    with torch.no_grad():
        assert largest(model.eval()(pack(ids, config=model.config)), again(**padded(ids)).logits) < 1e-5


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (VeRA(modules_to_save=("norm",)), "'norm', which is not a module of the encoder"),
        (IA3(modules_to_save=("key",)), "'key': layers.0.key is a target too"),
        (AdaLoRA(modules_to_save=("intermediate.dense",)), "intermediate is a target too"),
        (LoRA(modules_to_save=("value",)), "value is a target too"),
    ],
)
def test_a_module_that_is_none_or_a_target_is_refused_before_anything_changes(
    method: Any, message: str, checkpoint: Path
) -> None:
    model = load_pretrained(checkpoint)
    before = [type(part) for part in model.modules()]
    with pytest.raises(MinipeftError, match=message):
        apply(model, method)
    assert [type(part) for part in model.modules()] == before


@pytest.mark.parametrize("kind", [VeRA, AdaLoRA])
def test_a_bias_that_is_none_is_refused(kind: Any) -> None:
    with pytest.raises(MinipeftError, match="unknown bias 'some'; one of none, all, "):
        kind(bias="some")
