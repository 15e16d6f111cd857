"""minipeft.train as a Python function: its signature, its result, and what prediction takes."""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import pickle
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minipeft import LoRA, MinipeftError, Result, load_run, train
from minipeft.cli.flags import add_train_flags
from minipeft.progress_bar import disable_bar
from minipeft.training.settings.train_settings import TrainSettings

SMALL: dict[str, Any] = {"method": "head", "epochs": 1, "precision": "fp32", "device": "cpu", "quiet": True}
TEXTS = ["a good film", "a bad film", "what is there to say about a long, long film"]


@pytest.fixture(scope="module")
def result(tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    yield train(
        task="sst2",
        model=str(tiny_checkpoint),
        data=str(small_data),
        output=str(tmp_path_factory.mktemp("python") / "run"),
        **SMALL,
    )


def test_the_signature_of_train_is_its_settings_by_name_type_and_default() -> None:
    parameters = inspect.signature(train).parameters
    types = typing.get_type_hints(TrainSettings)
    assert list(parameters) == [field.name for field in fields(TrainSettings)]
    for field in fields(TrainSettings):
        parameter = parameters[field.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert (parameter.default, parameter.annotation) == (field.default, types[field.name]), field.name
    assert inspect.signature(train).return_annotation is Result


def test_help_describes_every_setting_as_the_command_line_does() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_train_flags(parser)
    for action in parser._actions:
        if action.dest != "help":
            assert f"\n    {action.dest}: {action.help}\n" in inspect.getdoc(train) + "\n", action.dest


def test_a_result_predicts_what_its_reloaded_run_does(result: Result) -> None:
    run = load_run(result.output, "cpu")
    assert result.predict(TEXTS) == run.predict(TEXTS)
    assert (result.predict_proba(TEXTS) == run.predict_proba(TEXTS)).all()


def test_probabilities_are_an_array_of_the_probabilities_by_name(result: Result) -> None:
    values = result.predict_proba(np.array(TEXTS))
    assert values.shape == (3, 2) and values.dtype == np.float64
    assert np.abs(values.sum(1) - 1).max() < 1e-12
    for row, prediction in zip(values, result.predict(iter(TEXTS)), strict=True):
        assert list(prediction["probabilities"]) == ["negative", "positive"]
        assert np.abs(row - list(prediction["probabilities"].values())).max() < 1e-6
    assert result.predict([]) == [] and result.predict_proba([]).shape == (0, 2)


def test_what_is_not_a_list_of_texts_is_refused(result: Result) -> None:
    for given, message in (
        (("one text",), "texts: 'one text' is one text. Pass a list"),
        ((["a", 3],), r"texts\[1\] is 3, not a text"),
        ((["a"], ["b"]), "give no pair"),
    ):
        with pytest.raises(MinipeftError, match=message):
            result.predict(*given)


def test_pairs_must_be_as_many_as_the_texts(small_runs: dict[str, Path]) -> None:
    run = load_run(small_runs["rte"], "cpu")
    with pytest.raises(MinipeftError, match="2 texts but 1 pairs"):
        run.predict(["a", "b"], ["c"])


def test_a_result_has_its_history_and_figures_by_name(result: Result) -> None:
    lines = (result.output / "metrics.jsonl").read_text().splitlines()
    assert result.history == [json.loads(line) for line in lines]
    best = next(row for row in result.history if row["epoch"] == result.content["best"]["epoch"])
    assert result.metrics.items() <= best.items() and result.metrics[result.content["metric"]] == result.best
    assert result.last == result.history[-1][result.content["metric"]]
    assert load_run(result.output).labels == result.predictor.labels == result.job.task.labels


@pytest.mark.parametrize(
    ("name", "meant"), [("r", "rank"), ("target_modules", "targets"), ("lora_alpha", "alpha"), ("droput", "dropout")]
)
def test_an_unknown_option_of_a_method_names_the_one_that_is_meant(name: str, meant: str) -> None:
    with pytest.raises(MinipeftError, match=rf"LoRA has no option '{name}' \(did you mean {meant}\?\)"):
        LoRA(**{name: 4})
    assert copy.deepcopy(LoRA(rank=3)) == LoRA(3) != pickle.loads(pickle.dumps(LoRA(4)))


def test_results_and_runs_print_as_one_short_line(result: Result) -> None:
    best = result.content["best"]
    assert repr(result) == (
        f"Result(task='sst2', method='head', accuracy={best['value']:.4f}, epoch=1, output={str(result.output)!r})"
    )
    assert repr(load_run(result.output, "cpu")) == (
        "LoadedRun(task='sst2', method='head', labels=['negative', 'positive'], device='cpu')"
    )


def test_a_bar_is_shown_on_a_terminal_and_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert disable_bar(True) is True and disable_bar(False) is None
    shell = SimpleNamespace(kernel=None)  # a notebook's shell has a kernel, that of a terminal has none
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert disable_bar(True) is True and disable_bar(False) is False


# -- Rows in memory --


def rows(number: int = 40) -> list[dict[str, str]]:
    return [{"text": f"a {('good', 'poor')[n % 2]} film, {n}", "label": ("yes", "no")[n % 2]} for n in range(number)]


@pytest.fixture(scope="module")
def in_memory(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("memory") / "run"
    return train(data=rows(), output=str(folder), model=str(tiny_checkpoint), **SMALL)


def test_rows_in_memory_train_the_run_of_the_same_file(
    in_memory: Result, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    (tmp_path / "data.jsonl").write_text(lines)
    file = train(data=str(tmp_path / "data.jsonl"), output=str(tmp_path / "run"), model=str(tiny_checkpoint), **SMALL)
    for name in ("task", "best", "last", "metric"):
        assert in_memory.content[name] == file.content[name]
    texts = [row["text"] for row in rows()]
    assert (in_memory.predict_proba(texts) == file.predict_proba(texts)).all()
    assert (load_run(in_memory.output, "cpu").predict_proba(texts) == file.predict_proba(texts)).all()


def test_rows_in_memory_resume_with_the_same_rows_only(in_memory: Result, tiny_checkpoint: Path) -> None:
    settings = {"output": str(in_memory.output), "model": str(tiny_checkpoint), "resume": True, **SMALL}
    assert train(data=rows(), **settings).content == in_memory.content
    with pytest.raises(MinipeftError, match="the run has other training examples"):
        train(data=rows(38), **settings)
    with pytest.raises(MinipeftError, match="the run has data 'rows in memory', not 'standin'"):
        train(data="standin", **settings)


def test_a_run_in_memory_is_evaluated_on_a_file(in_memory: Result, tmp_path: Path) -> None:
    run = load_run(in_memory.output, "cpu")
    with pytest.raises(MinipeftError, match="trained on rows in memory; evaluate it on a file, by --input"):
        run.evaluate()
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(6)))
    assert set(run.evaluate_file(str(tmp_path / "data.jsonl"))) == {"eval_loss", "accuracy", "macro_f1"}


def test_a_validation_split_in_memory_needs_its_training_split_there() -> None:
    with pytest.raises(MinipeftError, match="--validation: rows in memory need a training split in memory"):
        train(data="some.csv", validation=rows())


def test_errors_in_python_name_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipeft.errors.names_flags", False)
    with pytest.raises(MinipeftError, match=r"^max_length 'x' is not a whole number"):
        train(task="rte", max_length="x")  # type: ignore[arg-type]
    with pytest.raises(MinipeftError, match=r"^epochs 2 and steps 3 exclude each other\. Drop one\.$"):
        train(task="rte", epochs=2, steps=3)
    with pytest.raises(MinipeftError, match=r"^file_format 'conll' is for custom datasets"):
        train(task="rte", file_format="conll")
    command = "RUN: nothing. Run minipeft evaluate RUN --threshold auto first. Pass --label-type."
    assert str(MinipeftError(command)) == command.replace("--label-type", "label_type")
