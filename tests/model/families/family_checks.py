"""Checks of an encoder family: activation checkpointing, bfloat16, and a whole run on real RTE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conftest import largest, padded, ragged, shared

from minipeft import SequenceClassifier, load_pretrained, load_run, load_tokenizer, merge, pack, train
from minipeft.inference.predict import LoadedRun

LENGTHS = (7, 1, 40, 3, 129, 300, 2, 64)


def check_activation_checkpointing(model: SequenceClassifier, ids: list[list[int]]) -> None:
    """The loss and every gradient are the same to the bit with and without activation checkpointing."""
    model.train()
    results = []
    for checkpointing in (False, True):
        model.encoder.activation_checkpointing = checkpointing
        torch.manual_seed(1)
        loss = F.cross_entropy(model(pack(ids, config=model.config)), torch.arange(len(ids)) % 2)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def check_bfloat16(reference: Any, folder: Path, bound: float) -> None:
    """The logits in bfloat16 differ from those in float32 by less than `bound`, or 1.5 times transformers' difference.

    reference   transformers' model in float32, saved in the folder
    """
    model, half = load_pretrained(folder), load_pretrained(folder, dtype=torch.bfloat16)
    ids = ragged(LENGTHS)
    exact, logits = (one(pack(ids, config=one.config)) for one in (model, half))
    theirs = reference.to(torch.bfloat16)(**padded(ids, model.config.pad_token_id)).logits.float()
    assert 0 < largest(logits, exact) < max(bound, 1.5 * largest(theirs, exact))


def check_run(checkpoint: Path, folder: Path, method: str = "lora") -> LoadedRun:
    """A run on real RTE evaluates to its best accuracy, and gives the same logits when it is exported or merged."""
    from transformers import AutoModelForSequenceClassification

    small = {"train_limit": 48, "eval_limit": 16, "batch_size": 8, "epochs": 2, "max_length": 200}
    place = {"model": str(checkpoint), "data": str(shared("glue")), "output": str(folder / "run")}
    result = train(task="rte", method=method, device="cpu", precision="fp32", quiet=True, **place, **small)
    finished = load_run(folder / "run")
    assert finished.evaluate()["accuracy"] == result.best
    ids = load_tokenizer(checkpoint).encode(["A man sleeps.", "It is late."], ["A man rests.", "It is early."])
    model = finished.model
    batch = pack(ids, config=model.config)
    assert batch.token_type_ids is None
    with torch.no_grad():
        logits = model(batch)
        if method != "prompt_tuning":  # which no encoder's weights can hold
            finished.export(folder / "exported")
            theirs = AutoModelForSequenceClassification.from_pretrained(folder / "exported").eval()
            assert largest(theirs(**padded([list(row) for row in ids], 0)).logits, logits) < 1e-5
        if method == "lora":
            assert largest(merge(model)(batch), logits) < 1e-5
    return finished
