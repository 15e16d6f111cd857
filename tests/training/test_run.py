"""A run's folder, in this process and in fresh ones: files, fields, starts, precisions, reload to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import contents, details_of, run_command, shared
from small_runs import SMALL, adapter, rows, small_run, state, without_times

from minipeft import (
    BitFit,
    EncoderConfig,
    LoRA,
    MinipeftError,
    SequenceClassifier,
    load_run,
    load_tokenizer,
    train,
)
from minipeft.data.tokens.examples import encode_texts
from minipeft.device import has_fast_bf16
from minipeft.methods import METHODS
from minipeft.model.layers import init_weights
from minipeft.model.saved_checkpoint import save_checkpoint
from minipeft.training import loop
from minipeft.training.evaluate import predict_logits
from minipeft.training.progress import CONSTANT, best_epoch

METRICS_FIELDS = [
    "epoch",
    "step",
    "train_loss",
    "eval_loss",
    "accuracy",
    "learning_rate",
    "seconds",
    "samples_per_second",
]
CHECKPOINT_FILES = ("json", "weights.safetensors", "optimizer.safetensors")
RESULT_FIELDS = {
    "format",
    "task",
    "method",
    "model",
    "data",
    "examples",
    "metric",
    "best",
    "last",
    "parameters",
    "train_seconds",
    "samples_per_second",
    "peak_memory_bytes",
    "precision",
    "seed",
    "versions",
}


@pytest.mark.parametrize(
    ("task", "method"), [*(("rte", method) for method in METHODS), ("sst2", "lora"), ("sst2", "bitfit")]
)
def test_every_method_leaves_a_whole_run_of_real_data(
    task: str, method: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = small_run(tiny_checkpoint, shared("glue"), tmp_path / "run", task=task, method=method)
    folder = tmp_path / "run"
    optional = {"curves.png", *(name for name in contents(folder) if name.startswith("tensorboard/"))}
    assert set(contents(folder)) - optional == {
        "config.json",
        "metrics.jsonl",
        "result.json",
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        *(f"checkpoint/step-0000000{step}.{kind}" for step in (3, 6) for kind in CHECKPOINT_FILES),
    }
    history, content = rows(folder), json.loads((folder / "result.json").read_text())
    assert [[name for name in row if name != CONSTANT] for row in history] == [METRICS_FIELDS] * 2
    assert [(row["epoch"], row["step"]) for row in history] == [(1, 3), (2, 6)]
    assert content == result.content and set(content) == RESULT_FIELDS
    assert (content["task"], content["method"], content["metric"]) == (task, method, "accuracy")
    best = max(chosen_from(history), key=lambda row: row["accuracy"])
    assert content["best"] == {"epoch": best["epoch"], "value": best["accuracy"]}
    assert content["last"] == {"epoch": 2, "value": history[-1]["accuracy"]} and result.best == best["accuracy"]
    in_file = sum(tensor.numel() for tensor in adapter(folder).values())
    frozen = 0 if method != "vera" else 2 * 256 * 32  # its random matrices, rank 256 on 32 features, are in the file
    assert content["parameters"]["method"] + content["parameters"]["head"] + frozen == in_file
    assert content["train_seconds"] == pytest.approx(sum(row["seconds"] for row in history))
    reloaded = load_run(folder).evaluate()
    assert reloaded == {"eval_loss": best["eval_loss"], "accuracy": best["accuracy"]}


def test_a_run_starts_from_another_runs_adapter(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the LoRA paper starts RTE from MNLI: the method's values always, the head where the labels are the same."""
    options = {"method_options": {"rslora": True}, "quiet": False}
    small_run(tiny_checkpoint, small_data, tmp_path / "first", rank=3, targets=("key",), **options)
    first = adapter(tmp_path / "first")
    for task, keeps_head in (("rte", True), ("sst2", False)):
        capsys.readouterr()
        small_run(  # with a learning rate of 0 the adapter stays where it started
            tiny_checkpoint,
            small_data,
            tmp_path / task,
            task=task,
            init_adapter=str(tmp_path / "first"),
            lr=0.0,
            quiet=False,
        )
        started = adapter(tmp_path / task)
        assert started.keys() == first.keys()
        for name, tensor in started.items():
            if ".classifier." in name:
                assert torch.equal(tensor, first[name]) == keeps_head
            else:
                assert torch.equal(tensor, first[name])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("start ")]
        assert len(lines) == 1 and str(tmp_path / "first" / "adapter") in lines[0]
        assert ("head included" if keeps_head else "with a new head for negative, positive") in lines[0]
        record = json.loads((tmp_path / task / "config.json").read_text())
        assert (record["rank"], record["targets"], record["method_options"]) == (3, ["key"], {"rslora": True})
    assert load_run(tmp_path / "sst2").model.method == LoRA(3, 8, 0.01, ("key",), rslora=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 3.0}, r"alpha 3\.0 would change what it computes"),
        ({"rank": 1}, "rank 1 would change"),
        ({"method_options": {"rslora": True}}, "rslora True would change"),
        ({"method": "bitfit"}, "holds LoRA.*Pass --method lora"),
        ({"init_adapter": "no/such/run"}, "no/such/run.*is missing"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    from minipeft import apply, load_pretrained, save_adapter

    save_adapter(apply(load_pretrained(tiny_checkpoint), LoRA(2)), tmp_path / "first")
    with pytest.raises(MinipeftError, match=message):
        small_run(
            tiny_checkpoint, small_data, tmp_path / "run", **{"init_adapter": str(tmp_path / "first"), **settings}
        )
    assert not (tmp_path / "run").exists()


def test_a_regression_task_runs_and_predicts_a_score(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = small_run(tiny_checkpoint, shared("glue"), tmp_path / "run", task="stsb", method="bitfit")
    assert result.content["metric"] == "pearson" and result.model.config.num_labels == 1
    best = max(rows(tmp_path / "run"), key=lambda row: row["pearson"])
    run = load_run(tmp_path / "run")
    assert run.evaluate() == {name: best[name] for name in ("eval_loss", "pearson", "spearman")}
    (score,) = run.predict(["A man plays a guitar."], ["Someone plays."])
    assert list(score) == ["score"] and isinstance(score["score"], float)


def test_config_json_holds_every_setting_resolved(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    from dataclasses import fields

    from minipeft.training.settings.train_settings import TrainSettings

    small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(config) == {f.name for f in fields(TrainSettings)} | {"format", "source", "labels", "examples"}
    own = {"text_column", "pair_column", "label_column", "validation", "fold", "group_column", "weight_column"}
    own.add("file_format")
    optional = {
        "init_adapter",
        "holdout",
        "patience",
        "eval_every",
        "steps",
        "warmup_ratio",
        "train_layers",
        "label_separator",
        "stride",
        "class_weights",
        "report_to",
        "threads",
        "checkpoint_copy",
    }
    assert {name for name, value in config.items() if value is None} == optional | own  # none given


def test_a_method_given_as_its_config_is_the_method_given_by_flags(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    flags = small_run(
        tiny_checkpoint,
        small_data,
        tmp_path / "flags",
        method="lora",
        rank=3,
        alpha=6.0,
        dropout=0.0,
        targets=("key", "intermediate"),
    )
    config = small_run(
        tiny_checkpoint, small_data, tmp_path / "config", method=LoRA(3, 6.0, 0.0, ("key", "intermediate"))
    )
    assert without_times(rows(flags.output)) == without_times(rows(config.output))
    assert flags.model.method == config.model.method == LoRA(3, 6.0, 0.0, ("key", "intermediate"))
    assert small_run(tiny_checkpoint, small_data, tmp_path / "bitfit", method=BitFit()).content["method"] == "bitfit"


def test_how_a_step_is_shared_out_changes_nothing(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "no-dropout")
    content = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(
        json.dumps(content | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    common = {"method": "lora", "dropout": 0.0, "train_limit": 96}
    histories = []
    for name, settings in {
        "16x4": {"batch_size": 16, "grad_accum": 4},
        "64x1": {"batch_size": 64, "grad_accum": 1},
        "few tokens": {"batch_size": 64, "grad_accum": 1, "max_tokens": 100},
    }.items():
        small_run(checkpoint, small_data, tmp_path / name, **common, **settings)
        histories.append(without_times(rows(tmp_path / name)))
    assert histories[0] == histories[1]
    for one, other in zip(histories[0], histories[2], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    one, other = adapter(tmp_path / "16x4"), adapter(tmp_path / "few tokens")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"] if has_fast_bf16("cpu") else ["fp32"])
def test_a_fresh_process_predicts_the_training_process_s_bits(
    precision: str, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", precision=precision, lr=5e-3)
    texts, pairs = ["All dogs bark.", "A bird sings in the garden.", "Nobody came"], ["Dogs bark.", "It rains", ""]
    tokenizer = load_tokenizer(tiny_checkpoint)
    from minipeft.data.tasks.task import get_task

    sequences = encode_texts(get_task("rte"), texts, pairs, tokenizer, 128, None)
    expected = predict_logits(result.model, sequences, 2048).softmax(1)
    given = [word for text, pair in zip(texts, pairs, strict=True) for word in ("--text", text, "--pair", pair)]
    predicted = run_command("-m", "minipeft", "predict", tmp_path / "run", *given)
    assert predicted.returncode == 0 and predicted.stderr == "", predicted.stderr
    lines = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert [list(line["probabilities"].values()) for line in lines] == expected.double().round(decimals=6).tolist()
    assert all(list(line["probabilities"]) == ["entailment", "not_entailment"] for line in lines)
    assert [line["label"] for line in lines] == [
        max(line["probabilities"], key=line["probabilities"].get) for line in lines
    ]
    best = max(rows(tmp_path / "run"), key=lambda row: row["accuracy"])
    assert load_run(tmp_path / "run").evaluate() == {name: best[name] for name in ("eval_loss", "accuracy")}


def test_a_run_in_bf16_predicts_in_fp32_where_bf16_is_slow(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those of the run within the rounding of bf16, and the same bits where bf16 is asked for."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("minipeft.device.logger.warning", lambda text, *values: said.append(text % values))
        patch.setattr("minipeft.device.bf16_slowdown", lambda device: 14.84)  # this CPU may be fast
        result = small_run(tiny_checkpoint, small_data, tmp_path / "run", precision="bf16", lr=5e-3)
    (line,) = (line for line in said if line.startswith("precision bf16"))
    assert "takes 14.8 times as long as in fp32" in line
    texts, pairs = ["All dogs bark.", "A bird sings in the garden.", "Nobody came"], ["Dogs bark.", "It rains", ""]
    expected = result.predict_proba(texts, pairs)
    run = load_run(tmp_path / "run")
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert run.predict_proba(texts, pairs) == pytest.approx(expected, abs=0.02)
    same = load_run(tmp_path / "run", precision="bf16")
    assert (same.predict_proba(texts, pairs) == expected).all()


def test_a_full_gpu_ends_a_run_with_one_line_and_keeps_its_checkpoint(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, norms = loop.clip_grad_norm_, []

    def fail_in_the_second_epoch(parameters: Any, max_norm: float) -> torch.Tensor:
        norms.append(clip(parameters, max_norm))
        if len(norms) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSecond line")
        return norms[-1]

    monkeypatch.setattr(loop, "clip_grad_norm_", fail_in_the_second_epoch)
    with pytest.raises(MinipeftError) as caught:
        small_run(tiny_checkpoint, small_data, tmp_path / "run", max_tokens=200)
    assert str(caught.value) == (
        "cpu: out of memory with --max-tokens 200 (CUDA out of memory. Tried to allocate 2.00 GiB.). Pass --max-tokens "
        f"100 or pass --activation-checkpointing, with --resume ({tmp_path / 'run'} keeps the checkpoint of epoch 1, "
        "step 3)."
    )
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", max_tokens=100, resume=True)
    assert [row["epoch"] for row in rows(result.output)] == [1, 2]


def test_in_bf16_what_trains_stays_float32(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    for method in ("lora", "bitfit", "full"):
        result = small_run(tiny_checkpoint, small_data, tmp_path / method, method=method, precision="bf16")
        assert {tensor.dtype for tensor in adapter(tmp_path / method).values()} == {torch.float32}
        parameters = list(result.model.parameters())
        assert {parameter.dtype for parameter in parameters if parameter.requires_grad} == {torch.float32}
        frozen = {parameter.dtype for parameter in parameters if not parameter.requires_grad}
        assert frozen == (set() if method == "full" else {torch.bfloat16})
        exact = small_run(tiny_checkpoint, small_data, tmp_path / f"{method}-fp32", method=method)
        for row, reference in zip(rows(result.output), rows(exact.output), strict=True):
            assert row["train_loss"] == pytest.approx(reference["train_loss"], abs=0.05)


@pytest.mark.full
def test_compiled_layers_train_to_the_same_losses(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none")
    checkpoint = tmp_path / "one-layer"  # each layer is compiled by itself, and slowly
    checkpoint.mkdir()
    shutil.copyfile(tiny_checkpoint / "tokenizer.json", checkpoint / "tokenizer.json")
    torch.manual_seed(0)
    model = SequenceClassifier(
        EncoderConfig(
            vocab_size=500,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=130,
            hidden_dropout_prob=0.0,
        )
    )
    init_weights(model, 0.2)
    save_checkpoint(model, checkpoint)
    settings = {"epochs": 1, "dropout": 0.0}
    small_run(checkpoint, small_data, tmp_path / "plain", **settings)
    small_run(checkpoint, small_data, tmp_path / "compiled", compile=True, **settings)
    plain, compiled = rows(tmp_path / "plain")[0], rows(tmp_path / "compiled")[0]
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-4)
    assert compiled["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-4)
    assert load_run(tmp_path / "compiled").evaluate()["eval_loss"] == pytest.approx(compiled["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(("select_by", "epoch"), [("accuracy", 2), ("eval_loss", 3), ("f1", 1)])
def test_the_best_epoch_is_the_first_with_the_best_value_of_the_figure(select_by: str, epoch: int) -> None:
    figures = [(0.5, 0.8, 0.9), (0.7, 0.6, 0.8), (0.7, 0.5, 0.9), (0.6, 0.55, 0.1)]
    history = [
        {"epoch": number, "accuracy": accuracy, "eval_loss": loss, "f1": f1}
        for number, (accuracy, loss, f1) in enumerate(figures, 1)
    ]
    assert best_epoch(history, select_by)["epoch"] == epoch


def test_an_epoch_that_predicts_one_class_is_the_best_only_if_all_do() -> None:
    history = [{"epoch": epoch, "accuracy": value, CONSTANT: 1.0} for epoch, value in ((1, 0.95), (2, 0.95))]
    assert best_epoch(history, "accuracy")["epoch"] == 1
    history += [{"epoch": 3, "accuracy": 0.6}, {"epoch": 4, "accuracy": 0.7}]
    assert best_epoch(history, "accuracy")["epoch"] == 4


def test_select_by_chooses_the_adapter_and_the_result(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    settings = {"epochs": 3, "lr": 3.0, "warmup_steps": 0, "precision": "fp32"}
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", select_by="eval_loss", **settings)
    history = rows(tmp_path / "run")
    losses = [row["eval_loss"] for row in history]
    best = losses.index(min(losses))
    assert result.content["best"] == {"epoch": best + 1, "value": history[best]["accuracy"]}
    assert details_of(tmp_path / "run" / "adapter")["epoch"] == best + 1
    assert load_run(tmp_path / "run").evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-6)
    with pytest.raises(MinipeftError, match="unknown --select-by 'f2'; one of eval_loss, accuracy"):
        small_run(tiny_checkpoint, small_data, tmp_path / "other", select_by="f2")
    with pytest.raises(MinipeftError, match="select_by"):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", select_by="accuracy", resume=True, **settings)


def chosen_from(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An epoch that predicts one class alone is chosen only where all do."""
    return [row for row in history if CONSTANT not in row] or history


@pytest.mark.parametrize("select_by", ["balanced_accuracy", "f1:entailment", "macro_f1", "auroc"])
def test_any_metric_of_the_labels_can_select(
    select_by: str, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """It is evaluated too: in metrics.jsonl, of the held-out examples as well, in result.json and by a reloaded run."""
    settings = {"epochs": 3, "lr": 0.05, "holdout": 0.2, "precision": "fp32"}
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", select_by=select_by, **settings)
    history = rows(tmp_path / "run")
    best = max(chosen_from(history), key=lambda row: row[f"holdout_{select_by}"])
    assert result.content["best"] == {"epoch": best["epoch"], "value": best["accuracy"]}
    assert result.content[select_by] == {"best": best[select_by], "last": history[-1][select_by]}
    assert load_run(tmp_path / "run").evaluate()[select_by] == pytest.approx(best[select_by], abs=1e-9)


def test_a_learning_rate_that_blows_up_keeps_the_last_good_epoch(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """One step an epoch, and a warmup: the first step has learning rate 0, the second an absurd one."""
    settings = {"epochs": 4, "batch_size": 48, "grad_accum": 1, "lr": 1e36, "warmup_steps": 10}
    with pytest.raises(MinipeftError, match=r"step \d+: .*Lower --lr .*keeps the checkpoint of epoch 1"):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", **settings)
    assert all(torch.isfinite(tensor).all() for tensor in adapter(tmp_path / "run").values())
    (row,) = rows(tmp_path / "run")
    assert load_run(tmp_path / "run").evaluate() == {name: row[name] for name in ("eval_loss", "accuracy")}
    saved = state(tmp_path / "run")
    assert saved["progress"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in saved["weights"].values())
    assert not (tmp_path / "run" / "result.json").exists()


def test_names_given_explicitly_are_never_replaced(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match="example/no-such-encoder"):
        small_run(Path("example/no-such-encoder"), small_data, tmp_path / "run")
    with pytest.raises(MinipeftError, match="no folder rte"):
        small_run(tiny_checkpoint, tmp_path, tmp_path / "run")
    assert contents(tmp_path) == {}


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match="unknown setting 'learning_rate'"):
        train(learning_rate=1e-3)
    with pytest.raises(MinipeftError, match="is not a method"):
        train(method=object())


def test_without_an_output_each_run_gets_a_folder_of_its_own(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "epochs": 1, "task": "sst2", "model": str(tiny_checkpoint), "data": str(small_data)}
    folders = [train(**settings).output for _ in range(2)]
    assert folders[0] != folders[1] and all(str(folder).startswith("runs/sst2-lora") for folder in folders)
    assert train(**settings, resume=True).output == folders[1]
