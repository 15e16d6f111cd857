"""Models with AdaLoRA on both sides, ours and peft's, with the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import padded, ragged, reference_model
from peft_agreement import LENGTHS
from torch import Tensor

from minipeft import (
    AdaLoRA,
    SequenceClassifier,
    apply,
    load_pretrained,
)
from minipeft.methods.lora_variants.adalora import AdaLoRALinear
from minipeft.model.pretrained import name_table, tensor_names

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
THREE = ("lora_A", "lora_E", "lora_B")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# For each of our targets, the regular expression that means it to peft.
PEFT_TARGETS = {
    "query": r"attention\.self\.query",
    "key": r"attention\.self\.key",
    "value": r"attention\.self\.value",
    "output": r"attention\.output\.dense",
    "intermediate": r"intermediate\.dense",
    "ffn_output": r"\d+\.output\.dense",
}


def with_peft(
    folder: Path, method: AdaLoRA, total_steps: int = 10, targets: Any = None, **shape: Any
) -> tuple[Any, SequenceClassifier]:
    """A model with AdaLoRA from peft, and ours with the same numbers."""
    from peft import AdaLoraConfig, get_peft_model

    reference = reference_model(**shape)
    reference.save_pretrained(folder)
    model = apply(load_pretrained(folder), method)
    ours = "|".join(PEFT_TARGETS[target] for target in method.targets)
    config = AdaLoraConfig(
        task_type="SEQ_CLS",
        target_r=method.target_rank,
        init_r=method.init_rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        tinit=method.tinit,
        tfinal=method.tfinal,
        deltaT=method.delta_t,
        beta1=method.beta1,
        beta2=method.beta2,
        orth_reg_weight=method.orth_weight,
        total_step=total_steps,
        target_modules=rf".*\.layer\.\S*({ours})" if targets is None else targets,
    )
    wrapped = get_peft_model(reference, config)
    theirs, names = dict(wrapped.named_parameters()), peft_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(theirs[names[name]])
    return wrapped, model


def peft_names(model: SequenceClassifier) -> dict[str, str]:
    """Our name of each parameter → its name in a model that peft has wrapped."""
    names = {}
    for ours, theirs in tensor_names(model, model.config).items():
        names[ours] = "base_model.model." + theirs.replace("classifier.", "classifier.modules_to_save.default.")
    for ours, theirs in name_table(model, model.config).items():
        if isinstance(model.get_submodule(ours), AdaLoRALinear):
            for leaf in ("weight", "bias"):
                names[f"{ours}.{leaf}"] = f"base_model.model.{theirs}.base_layer.{leaf}"
            for leaf in THREE:
                names[f"{ours}.{leaf}"] = f"base_model.model.{theirs}.{leaf}.default"
    return names


def randomise(model: SequenceClassifier, wrapped: Any = None, seed: int = 1) -> None:
    """Give Λ, which starts at zero, numbers; and peft's model the same."""
    generator = torch.Generator().manual_seed(seed)
    theirs, names = dict(wrapped.named_parameters()) if wrapped else {}, peft_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_E"):
                parameter.copy_(100 * torch.randn(parameter.shape, generator=generator))
                if wrapped:
                    theirs[names[name]].copy_(parameter)


def reference_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**padded(ragged(LENGTHS))).logits


def singular_values(model: SequenceClassifier) -> Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("lora_E")])
