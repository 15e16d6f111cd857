"""A method of ours against peft's: the same adapter, the same logits, gradients and steps of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conftest import largest, padded, ragged, reference_model
from safetensors.torch import load_file
from torch import Tensor

from minipeft import SequenceClassifier, apply, load_adapter, load_pretrained, pack, save_adapter
from minipeft.adapters.save import adapter_tensors
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

LENGTHS = (7, 1, 40, 3, 129, 7)
HEADS = {
    "roberta": ["classifier"],
    "bert": ["pooler", "classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "electra": ["classifier"],
    "modernbert": ["head", "classifier"],
}


def logits(model: SequenceClassifier) -> Tensor:
    with torch.no_grad():
        return model.eval()(pack(ragged(LENGTHS), config=model.config))


def moved(folder: Path, method: Any, **options: Any) -> SequenceClassifier:
    """The checkpoint in `folder` with the method, whose values have moved at random from their start."""
    model = apply(load_pretrained(folder, **options), method).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def check_opens_in_peft(method: Any, model_type: str, folder: Path) -> SequenceClassifier:
    """A saved adapter that has moved opens in peft with the same logits; return the model that it was saved from."""
    from peft import PeftModel

    reference = reference_model(model_type)
    reference.save_pretrained(folder / "base")
    model = moved(folder / "base", method)
    save_adapter(model, folder / "adapter")
    wrapped = PeftModel.from_pretrained(reference, folder / "adapter").eval()
    with torch.no_grad():
        theirs = wrapped(**padded(ragged(LENGTHS), model.config.pad_token_id)).logits
    assert largest(logits(model), theirs) < 1e-5
    assert largest(logits(model), logits(load_pretrained(folder / "base"))) > 1e-2
    return model


def pair(folder: Path, config: Callable[..., Any], model_type: str = "roberta") -> tuple[Any, SequenceClassifier]:
    """A model that peft has wrapped, its trained values moved at random, and ours, loaded from what it saved.

    config   makes peft's config of task_type and modules_to_save
    """
    from peft import get_peft_model

    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    reference = reference_model(model_type, **no_dropout)
    reference.save_pretrained(folder / "base")
    wrapped = get_peft_model(reference, config(task_type="SEQ_CLS", modules_to_save=list(HEADS[model_type]))).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder / "theirs")
    return wrapped, load_adapter(load_pretrained(folder / "base"), folder / "theirs")


def check_logits_and_gradients(wrapped: Any, model: SequenceClassifier) -> None:
    """Logits within 1e-5, every gradient within 1e-4 of its largest entry, on ragged lengths."""
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    logits = model(pack(ids, config=model.config))
    theirs = wrapped(**padded(ids, model.config.pad_token_id), labels=labels)
    assert largest(logits, theirs.logits) < 1e-5
    F.cross_entropy(logits, labels).backward()
    theirs.loss.backward()
    expected = {
        name.replace(".modules_to_save", "").replace(".default", ""): parameter.grad
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad
    }
    ours = {name: tensor.grad for name, tensor in adapter_tensors(model).items() if tensor.requires_grad}
    assert sorted(ours) == sorted(expected)
    for name, grad in ours.items():
        assert grad is not None and float(expected[name].abs().max()) > 0, name
        assert largest(grad, expected[name]) < 1e-4 * float(expected[name].abs().max()), name


def check_training(wrapped: Any, model: SequenceClassifier, folder: Path, steps: int = 20, rate: float = 1e-3) -> None:
    """Every loss of `steps` AdamW steps within 1e-4; what both save then has moved, and agrees within 1e-4."""
    wrapped.train(), model.train()
    ours = adamw(model, weight_decay=0.0)
    set_learning_rate(ours, rate)
    theirs = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    for step in range(steps):
        ids = ragged([3 + 7 * ((step + n) % 5) for n in range(6)], seed=step)
        labels = [n % 2 for n in range(6)]
        batch = pack(ids, labels, config=model.config)
        assert batch.labels is not None
        loss = F.cross_entropy(model(batch), batch.labels, reduction="sum") / len(batch)
        reference = wrapped(**padded(ids, model.config.pad_token_id), labels=torch.tensor(labels)).loss
        assert abs(loss.item() - reference.item()) < 1e-4, step
        for optimizer, value in ((ours, loss), (theirs, reference)):
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
    wrapped.save_pretrained(folder / "theirs-trained")
    save_adapter(model, folder / "ours-trained")
    one, other = (load_file(folder / name / "adapter_model.safetensors") for name in ("ours-trained", "theirs-trained"))
    before = load_file(folder / "theirs" / "adapter_model.safetensors")
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        assert largest(tensor, other[name]) < 1e-4, name
        assert largest(tensor, before[name]) > 1e-3 or name.startswith("base_model.vera_"), name  # these stay
