"""What a training step asks a CUDA device for, on a fake one: no mixed devices, no waiting, few launches.

The steps are those of the real loop; only the files that it would write of fake tensors are left out. pytest collects
this file when it is named: `pytest -n 0 tests/training/cuda_steps.py`, which is what test_cuda_steps.py does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import Counts, FakeCuda, fake_cuda, needs_fake_cuda, to_fake
from small_runs import encoded
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from minipeft import (
    IA3,
    AdaLoRA,
    BitFit,
    DoRA,
    Full,
    Head,
    Houlsby,
    LayerNormTuning,
    LoRA,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    VeRA,
    apply,
)
from minipeft.data.tokens.examples import Examples
from minipeft.methods import method_name
from minipeft.model.attention import varlen_trial
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families import get_family
from minipeft.model.pretrained import cast_frozen
from minipeft.model.roberta import EncoderLayer
from minipeft.training import loop
from minipeft.training.loop import RunFolder, train_loop
from minipeft.training.optimization.cuda_graphs import StepGraphs
from minipeft.training.optimization.schedule import Schedule

pytestmark = needs_fake_cuda

LAYERS = 12  # as in roberta-base, whose other sizes change no count
SHAPE = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 80, "vocab_size": 300}
METHODS = [
    Full(),
    Head(),
    BitFit(),
    LayerNormTuning(),
    LoRA(rank=2),
    LoRA(rank=2, dropout=0.1),
    DoRA(rank=2),
    AdaLoRA(init_rank=3, target_rank=2),
    VeRA(rank=8),
    IA3(),
    Houlsby(),
    Pfeiffer(),
    PrefixTuning(3),
    PromptTuning(3),
]
# Operators for which torch.use_deterministic_algorithms(True) raises on CUDA, of those that a model could use.
NO_DETERMINISTIC_VERSION = {
    *("kthvalue", "median", "nanmedian", "histc", "bincount", "put_", "scatter_reduce", "scatter_reduce_", "resize_"),
    *("_embedding_bag", "_embedding_bag_backward", "ctc_loss", "nll_loss2d_forward", "max_unpool2d", "_cdist_backward"),
}
BF16, FP32 = torch.bfloat16, torch.float32


def steps(
    family: str,
    method: Any,
    dtype: torch.dtype,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: int = 3,
    graphs: bool = False,
    checkpointing: bool = False,
    capability: tuple[int, int] = (9, 0),
) -> list[Counts]:
    """Train on the fake device → the counts of each step, the last with the evaluation."""

    def agrees(device: torch.device, dtype: torch.dtype, *_: Any) -> bool:  # the trial compares numbers
        return dtype == FP32 or capability >= (8, 0)

    monkeypatch.setattr(varlen_trial, "varlen_agrees", agrees)
    for name, instead in {
        "save_checkpoint": lambda *_: None,
        "publish": lambda *_: None,
    }.items():
        monkeypatch.setattr(loop, name, instead)
    fields = SHAPE | {"num_hidden_layers": layers}
    if family == "modernbert":
        fields |= {"pad_token_id": 0, "local_attention": 8}
    config = get_family(family).config(**fields)
    with fake_cuda(capability) as fake:
        with _disable_current_modes():
            torch.manual_seed(0)
            model = cast_frozen(apply(SequenceClassifier(config), method), dtype)
            data = Examples(encoded(24), encoded(9, seed=1))
        to_fake(model)
        model.encoder.activation_checkpointing = checkpointing
        counts = each_step(fake, monkeypatch)
        schedule = Schedule(1, 1e-3, 1, 0.01, 8, 10_000, 3, "accuracy")
        step_graphs = StepGraphs(model, lambda compute, trained: compute) if graphs else None
        train_loop(model, data, schedule, RunFolder(folder, 5.0, quiet=True, report_to=()), graphs=step_graphs)
    return counts[1:]


def each_step(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> list[Counts]:
    """A list that grows by the counts of what follows each torch.manual_seed: the loop seeds once a step."""
    counts, manual_seed = [fake.counts], torch.manual_seed

    def next_step(seed: int) -> Any:
        fake.counts = Counts()
        counts.append(fake.counts)
        return manual_seed(seed)

    monkeypatch.setattr(torch, "manual_seed", next_step)
    return counts


def check(counts: list[Counts], launches: int) -> None:
    """Every step, the last with the evaluation; in the first, tensors may be computed that are kept."""
    assert len(counts) == 3
    for step in counts:
        assert not step.mixed, dict(step.mixed)
        assert not step.waits, dict(step.waits)
        assert not step.launches.keys() & NO_DETERMINISTIC_VERSION, "torch.use_deterministic_algorithms would raise"
    assert sum(counts[1].launches.values()) <= launches, counts[1].launches.most_common(12)


# The most launches of a step in bfloat16 with 12 layers, for RoBERTa; LoRA's with dropout.
LAUNCHES = {
    "Full": 1000,
    "Head": 230,
    "BitFit": 700,
    "LayerNormTuning": 550,
    "LoRA": 650,
    "DoRA": 1000,
    "AdaLoRA": 1600,
    "VeRA": 900,
    "IA3": 650,
    "Houlsby": 1050,
    "Pfeiffer": 700,
    "PrefixTuning": 650,
    "PromptTuning": 500,
}
IN_SHORT = ("LoRA", "AdaLoRA")


def full_unless(short: bool, *values: Any) -> Any:
    """Values of a test that belongs to the short run, or to the full one."""
    names = "-".join(type(value).__name__ if value in METHODS else str(value) for value in values)
    return pytest.param(*values, marks=[] if short else pytest.mark.full, id=names)


@pytest.mark.parametrize("method", [full_unless(type(method).__name__ in IN_SHORT, method) for method in METHODS])
def test_roberta_of_12_layers_has_few_launches(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(steps("roberta", method, BF16, tmp_path, monkeypatch, layers=12), LAUNCHES[type(method).__name__])


CASES = [
    full_unless(dtype == BF16 and (family == "roberta" or method == METHODS[5]), family, method, dtype)
    for family in ("roberta", "deberta-v2", "modernbert")
    for method in METHODS
    for dtype in (BF16, FP32)
    if not get_family(family).unsupported.get(method_name(method)) and (family, method) != ("modernbert", BitFit())
]


@pytest.mark.parametrize("family, method, dtype", CASES)
def test_no_step_waits_for_the_device(
    family: str, method: Any, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(steps(family, method, dtype, tmp_path, monkeypatch, layers=2), 10_000)


@pytest.mark.parametrize(
    "family, dtype, method",
    [
        full_unless(True, "roberta", BF16, LoRA(rank=2, dropout=0.1)),
        full_unless(False, "roberta", FP32, BitFit()),
        full_unless(False, "roberta", BF16, AdaLoRA(init_rank=3, target_rank=2)),
        full_unless(True, "modernbert", BF16, LoRA(rank=2)),
    ],
)
def test_recorded_steps_do_not_wait(
    family: str, dtype: torch.dtype, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(steps(family, method, dtype, tmp_path, monkeypatch, layers=2, graphs=True), 10_000)


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)], ids=["no flash attention", "flash attention"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_step_of_an_older_gpu_or_with_activation_checkpointing_waits(
    checkpointing: bool, capability: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"checkpointing": checkpointing, "capability": capability}
    check(steps("roberta", LoRA(rank=2, dropout=0.1), BF16, tmp_path, monkeypatch, 2, **settings), 10_000)


def fault(kind: str, x: Tensor) -> None:
    """What a step must not do, on a tensor of the device."""
    if kind == "item":
        x.sum().item()
    elif kind == "host index":
        x[torch.arange(2)]
    elif kind == "boolean mask":
        x[x > 0]
    elif kind == "blocking copy":
        torch.arange(2).to(x.device)
    elif kind == "unpinned copy":
        torch.arange(2).to(x.device, non_blocking=True)
    elif kind == "tensor of a list":
        torch.tensor([1.0, 2.0], device=x.device)
    elif kind == "both devices":
        x[:2, :2] + torch.ones(2, 2)


@pytest.mark.parametrize(
    "kind",
    ["item", "host index", "boolean mask", "blocking copy", "unpinned copy", "tensor of a list", "both devices"],
)
def test_a_planted_fault_is_found(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_attention = EncoderLayer.after_attention

    def faulty(layer: EncoderLayer, x: Tensor, *given: Any) -> Tensor:
        fault(kind, x)
        return after_attention(layer, x, *given)

    monkeypatch.setattr(EncoderLayer, "after_attention", faulty)
    with pytest.raises((AssertionError, RuntimeError)):  # what fake tensors cannot do at all, they refuse
        check(steps("roberta", LoRA(rank=2), BF16, tmp_path, monkeypatch, layers=1), 10_000)
