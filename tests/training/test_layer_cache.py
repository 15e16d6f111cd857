"""--train-layers: trainable parameters, the cache of frozen layers, and runs that are the same with and without it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import FAMILY_FIELDS, OTHER_NAMES, SMALL, largest, ragged, run_command
from peft_agreement import check_opens_in_peft, logits
from safetensors.torch import load_file
from small_runs import adapter, interrupted_at, rows, same_tensors, small_run, state, without_times

import minipeft
from minipeft import AdaLoRA, BitFit, DoRA, Full, LayerNormTuning, LoRA, MinipeftError, VeRA, apply, pack
from minipeft.errors import Interrupted
from minipeft.files import SHARED_CACHE
from minipeft.methods import METHODS, LayerMethodConfig
from minipeft.model.classifier import SequenceClassifier, new_classifier
from minipeft.model.families import FAMILIES, get_family
from minipeft.training import layer_cache

LENGTHS = (7, 1, 40, 3, 129, 7)
RESTRICTED = [name for name, row in METHODS.items() if issubclass(row.config, LayerMethodConfig)]


class Usage(NamedTuple):
    free: int


def random_model(model_type: str = "roberta", **changes: Any) -> SequenceClassifier:
    """A small encoder of a family with random weights that differ from each other."""
    family = get_family(model_type)
    fields = SMALL | {"type_vocab_size": 1, "pad_token_id": 0} | FAMILY_FIELDS.get(model_type, {}) | changes
    fields = {OTHER_NAMES.get(model_type, {}).get(name, name): value for name, value in fields.items()}
    config = family.config.from_dict({"model_type": model_type, **fields}, family.defaults)
    torch.manual_seed(0)
    model = new_classifier(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every disk be full."""
    monkeypatch.setattr(layer_cache.shutil, "disk_usage", lambda _: Usage(0))


def assert_close(one: Path, other: Path) -> None:
    """The figures of two runs within 1e-5, their adapters within 1e-4."""
    for row, expected in zip(rows(one), rows(other), strict=True):
        for name in ("train_loss", "eval_loss"):
            assert row[name] == pytest.approx(expected[name], abs=1e-5), name
    ours, theirs = adapter(one), adapter(other)
    assert ours.keys() == theirs.keys()
    assert all(largest(ours[name], theirs[name]) < 1e-4 for name in ours)


# Trainable parameters


@pytest.mark.parametrize("name", RESTRICTED)
def test_a_method_changes_the_top_layers_alone(name: str) -> None:
    model = apply(random_model(), METHODS[name].config(train_layers=1, **({"rank": 4} if name == "vera" else {})))
    trained = {path for path, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert trained and all(path.startswith("layers.2.") for path in trained)
    kinds = [[type(part) for part in layer.modules()] for layer in model.encoder.layers]
    assert kinds[0] == kinds[1] == [type(part) for part in random_model().encoder.layers[0].modules()]


def test_in_modernbert_the_last_layer_norm_is_above_the_layers() -> None:
    model = apply(random_model("modernbert"), Full(train_layers=1))
    trained = {path.split(".")[0] for path, p in model.encoder.named_parameters() if p.requires_grad}
    assert trained == {"layers", "final_layer_norm"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(train_layers=4), "train_layers 4 is not from 1 to 3"),
        (LoRA(train_layers=0), "train_layers 0 is not from 1 to 3"),
        (LoRA(train_layers=1, rank_pattern={"0.query": 4}), "in layers 2 to 2"),
        (LayerNormTuning("embeddings", train_layers=1), "trains nothing in these layers"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(method: Any, message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        apply(random_model(), method)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(RESTRICTED)))
def test_the_other_methods_refuse_it_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match=f"--train-layers 2 has no meaning for {name}. Leave it out."):
        minipeft.train(method=name, train_layers=2, output=str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_a_method_prints_as_its_constructor() -> None:
    for method in (LoRA(rank=2, train_layers=4), BitFit(train_layers=1), BitFit(), Full(train_layers=2)):
        assert eval(repr(method)) == method
    assert "train_layers" not in repr(LoRA()) and repr(BitFit(train_layers=1)) == "BitFit(train_layers=1)"


# The frozen layers' output in place of the layers


@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_every_family_logits_and_gradients_follow_from_the_output(model_type: str) -> None:
    """ModernBERT's first and third layer see different distances, so the number of a layer matters."""
    model = apply(random_model(model_type), LoRA(targets=("query", "ffn_output"), train_layers=2)).train()
    batch = pack(ragged(LENGTHS), config=model.config)
    output = model.encoder.frozen_output(batch)
    assert model.training and model.encoder.layers[0].training
    assert torch.equal(output, model.encoder.frozen_output(batch)), "there was dropout"
    model.eval()
    given = model(batch)
    gradients = torch.autograd.grad(given.sum(), [p for p in model.encoder.parameters() if p.requires_grad])
    cached = model(replace(batch, hidden_states=output))
    expected = torch.autograd.grad(cached.sum(), [p for p in model.encoder.parameters() if p.requires_grad])
    assert largest(given, cached) < 1e-5
    assert all(
        largest(one, other) < 1e-4 * (1 + float(other.abs().max()))
        for one, other in zip(gradients, expected, strict=True)
    )
    assert largest(model(replace(batch, hidden_states=output.flip(0))), given) > 1e-3, "the output is not read"


# Runs


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_is_full_when_the_buffer_is_written_is_said_and_the_run_goes_on(
    no_dropout: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The rows of a head are few bytes: they stay in Python's buffer until the file is flushed or closed."""
    links = (tmp_path / f"link{number}" for number in count())

    def new_file(folder: str, size: int) -> str:
        (link := next(links)).symlink_to("/dev/full")
        return str(link)

    monkeypatch.setattr(layer_cache, "_new_file", new_file)
    full = small_run(no_dropout, small_data, tmp_path / "full", method="head")
    assert sum("no room for" in line and "computes the frozen layers" in line for line in caplog.messages) == 2
    monkeypatch.undo()
    cached = small_run(no_dropout, small_data, tmp_path / "cached", method="head")
    assert [row["eval_loss"] for row in full.history] == pytest.approx([row["eval_loss"] for row in cached.history])


@pytest.mark.parametrize("cached", [True, False])
def test_the_losses_are_those_of_a_rank_pattern_without_the_lower_layers(
    cached: bool, no_dropout: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    if not cached:
        without_cache(monkeypatch)
    small_run(no_dropout, small_data, tmp_path / "top", train_layers=1, dropout=0.0, quiet=False)
    assert cached != any("no room for" in line and "computes the frozen layers" in line for line in caplog.messages)
    options = {"rank_pattern": {"0": 0}}
    small_run(no_dropout, small_data, tmp_path / "pattern", method_options=options, dropout=0.0)
    pattern = tmp_path / "pattern"
    assert_close(tmp_path / "top", pattern)
    assert not any("layer.0." in name for name in adapter(tmp_path / "top"))


@pytest.mark.parametrize("method", ["lora", "full", "head", "bitfit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_with_and_without_the_cache_are_the_same(
    method: str, precision: str, no_dropout: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": method, "precision": precision} | ({} if method == "head" else {"train_layers": 1})
    small_run(no_dropout, small_data, tmp_path / "cached", **settings)
    with monkeypatch.context() as patch:
        without_cache(patch)
        small_run(no_dropout, small_data, tmp_path / "plain", **settings)
    if precision == "fp32":
        assert_close(tmp_path / "cached", tmp_path / "plain")
    else:  # frozen layers in other batches differ by bf16's rounding
        for row, expected in zip(rows(tmp_path / "cached"), rows(tmp_path / "plain"), strict=True):
            assert row["train_loss"] == pytest.approx(expected["train_loss"], abs=2e-2)


@pytest.mark.parametrize("kind", ["windows", "tokens"])
@pytest.mark.parametrize("method", ["lora", "head"])
def test_windows_and_tokens_have_a_cache_too(
    kind: str, method: str, no_dropout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [["Ada", "saw", "Rome", "and", "a", "film"][: 2 + number % 5] * (1 + number % 4) for number in range(24)]
    tags = [["B-per" if word == "Ada" else "O" for word in row] for row in words]
    if kind == "tokens":
        found = [{"tokens": row, "ner_tags": tag} for row, tag in zip(words, tags, strict=True)]
        settings: dict[str, Any] = {"label_type": "tokens", "stride": 2}
    else:
        found = [{"text": " ".join(row), "label": "long" if len(row) > 8 else "short"} for row in words]
        settings = {"stride": 4}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    settings |= {"long_text": "window", "max_length": 12, "method": method, "grad_accum": 1, "holdout": 0.2}
    settings |= {"task": "auto"} if method == "head" else {"task": "auto", "train_layers": 1}
    small_run(no_dropout, tmp_path / "rows.jsonl", tmp_path / "cached", **settings)
    without_cache(monkeypatch)
    small_run(no_dropout, tmp_path / "rows.jsonl", tmp_path / "plain", **settings)
    assert_close(tmp_path / "cached", tmp_path / "plain")


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_resumed_run_ends_with_the_same_bits(
    method: str, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": method} | ({} if method == "head" else {"train_layers": 1, "dropout": 0.1})
    small_run(tiny_checkpoint, small_data, tmp_path / "whole", **settings)
    with interrupted_at(4), pytest.raises(Interrupted):
        small_run(tiny_checkpoint, small_data, tmp_path / "parts", **settings)
    small_run(tiny_checkpoint, small_data, tmp_path / "parts", resume=True)
    assert without_times(rows(tmp_path / "parts")) == without_times(rows(tmp_path / "whole"))
    assert same_tensors(adapter(tmp_path / "parts"), adapter(tmp_path / "whole"))
    one, other = state(tmp_path / "parts"), state(tmp_path / "whole")
    assert same_tensors(one["weights"], other["weights"])


def test_a_shared_folder_has_one_file_for_each_split_data_and_number_of_layers(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods and seeds share it, as in a comparison."""
    filled = []
    fill = layer_cache._fill
    monkeypatch.setattr(layer_cache, "_fill", lambda *arguments: (filled.append(1), fill(*arguments)))
    small_run(tiny_checkpoint, small_data, tmp_path / "alone", train_layers=1, seed=2)
    monkeypatch.setenv(SHARED_CACHE, str(tmp_path / "cache"))
    for seed in (1, 2):
        small_run(tiny_checkpoint, small_data, tmp_path / f"lora-{seed}", train_layers=1, seed=seed, epochs=2)
    small_run(tiny_checkpoint, small_data, tmp_path / "full", train_layers=1, method="full", epochs=1)
    assert len(filled) == 4
    assert len([path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]) == 2
    assert same_tensors(adapter(tmp_path / "lora-2"), adapter(tmp_path / "alone"))
    small_run(tiny_checkpoint, small_data, tmp_path / "other", method="head", epochs=1)
    assert len(filled) == 6


@pytest.mark.full
def test_a_comparison_removes_its_cache(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    flags = ["--task", "rte", "--method", "lora", "head", "--data", small_data, "--model", tiny_checkpoint, "--seed", 1]
    flags += ["--epochs", 1, "--train-limit", 16, "--eval-limit", 8, "--device", "cpu"]
    flags += ["--train-layers", 1, "--jobs", 1]
    done = run_command("-m", "minipeft", "compare", *flags, "--output", tmp_path / "c", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "c" / "cache").exists()
    configs = [json.loads(path.read_text()) for path in (tmp_path / "c").glob("runs/*/config.json")]
    assert {config["method"]: config["train_layers"] for config in configs} == {"lora": 1, "head": None}


def test_no_file_is_left(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_cache.tempfile, "tempdir", str(tmp_path))
    small_run(tiny_checkpoint, small_data, tmp_path / "run", train_layers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.full
def test_two_processes_train_to_the_losses_of_one(no_dropout: Path, small_data: Path, tmp_path: Path) -> None:
    settings = {"train-layers": 1, "dropout": 0.0, "epochs": 2, "batch-size": 8, "grad-accum": 2, "train-limit": 48}
    settings |= {"eval-limit": 16, "device": "cpu", "precision": "fp32", "task": "rte", "warmup-steps": 2}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += ["--quiet", f"--model={no_dropout}", f"--data={small_data}", f"--output={tmp_path / 'two'}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    (tmp_path / "temporary").mkdir()
    done = run_command(*torchrun, *flags, OMP_NUM_THREADS="1", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stderr
    small_run(no_dropout, small_data, tmp_path / "one", train_layers=1, dropout=0.0)
    assert_close(tmp_path / "two", tmp_path / "one")
    assert not list((tmp_path / "temporary").glob("minipeft-*"))


# What a run leaves


def test_a_run_predicts_and_is_merged(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", train_layers=1, task="sst2")
    texts = ["a man eats", "a dog runs"]
    expected = result.predict(texts)
    assert minipeft.load_run(tmp_path / "run").predict(texts) == expected
    minipeft.export(result.model, tmp_path / "merged")
    merged = minipeft.load_run(tmp_path / "merged").predict(texts)
    for one, other in zip(merged, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    again = minipeft.load_adapter(minipeft.load_pretrained(tiny_checkpoint), tmp_path / "run" / "adapter")
    assert again.method == result.model.method and again.encoder.frozen_layers == len(again.encoder.layers) - 1


OF_MINIPEFT = [BitFit(train_layers=1), Full(train_layers=1), minipeft.Pfeiffer(train_layers=1)]
METHODS_OF_PEFT = [
    LoRA(rank=4, train_layers=2, alpha_pattern={"2.query": 4}),
    LoRA(rank=4, train_layers=1, bias="all", modules_to_save=("LayerNorm",)),
    DoRA(rank=4, train_layers=1),
    AdaLoRA(train_layers=2, init_rank=4, target_rank=2),
    VeRA(rank=8, train_layers=2),
    minipeft.IA3(train_layers=1),
    LayerNormTuning(train_layers=1),
]


@pytest.mark.parametrize("method", METHODS_OF_PEFT, ids=lambda method: type(method).__name__)
def test_peft_opens_an_adapter_of_the_top_layers(method: Any, tmp_path: Path) -> None:
    model_type = "roberta" if isinstance(method, LoRA) else "bert"
    model = check_opens_in_peft(method, model_type, tmp_path)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not [name for name in names if any(f".layer.{number}." in name for number in range(3 - method.train_layers))]
    again = minipeft.load_adapter(minipeft.load_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert again.method == method and largest(logits(again), logits(model)) == 0


@pytest.mark.parametrize(
    "method", [BitFit(train_layers=1), Full(train_layers=1), minipeft.Pfeiffer(train_layers=1)], ids=repr
)
def test_adapters_that_peft_does_not_have_come_back(method: Any, tmp_path: Path) -> None:
    model = apply(random_model(), method).eval()
    minipeft.save_adapter(model, tmp_path / "adapter")
    again = minipeft.load_adapter(random_model(), tmp_path / "adapter").eval()
    assert again.method == method and largest(logits(again), logits(model)) == 0
