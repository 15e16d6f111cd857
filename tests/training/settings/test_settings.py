"""The table of settings: values of wrong types, the numbers of runs, what a home folder is, and the steps of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import Classifier, LoRA, MinipeftError, train
from minipeft.cli.cli import main
from minipeft.compare.runners.runner_options import RunnerOptions
from minipeft.pretraining.pretrain_settings import PretrainSettings
from minipeft.training.settings.choices import numbered_folder
from minipeft.training.settings.setting import check_given, rows
from minipeft.training.settings.train_settings import TrainSettings, read_settings

TABLES = (TrainSettings, PretrainSettings, RunnerOptions)
EVERY = [(table, name) for table in TABLES for name in rows(table)]
# No setting takes one of these, but for rows in memory as data.
FOREIGN = (
    *(object(), b"bytes", 3j, {1, 2}, print, np.zeros(3), np.zeros((2, 2)), torch.zeros(2), [object()], ({},)),
    *(pandas.DataFrame({"text": ["a", "b"]}), pandas.Series([1, 2]), {3: object()}, range(3), Ellipsis),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(FOREIGN),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), max_size=3),
    st.dictionaries(
        st.one_of(st.text(max_size=4), st.integers()), st.one_of(st.floats(), st.text(max_size=4)), max_size=2
    ),
)


def raises_one_line(table: type[Any], name: str, value: Any) -> bool:
    """Whether the value is refused; an error that is not a MinipeftError of one line fails the test."""
    try:
        read_settings({name: value}) if table is TrainSettings else check_given(table, {name: value})
    except MinipeftError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 500, str(error)
        return True
    return False


@settings(deadline=None)  # the first value of a kind may import a library
@given(st.sampled_from(EVERY), VALUES)
def test_a_value_of_any_type_is_taken_or_refused_in_one_line(setting: tuple[type[Any], str], value: Any) -> None:
    raises_one_line(*setting, value)


@pytest.mark.parametrize(("table", "name"), EVERY, ids=lambda part: getattr(part, "__name__", part))
def test_a_value_of_a_foreign_type_is_refused_by_the_name_of_the_setting(table: type[Any], name: str) -> None:
    for value in FOREIGN:
        if not (name == "data" and type(value) in (pandas.DataFrame, tuple)):
            assert raises_one_line(table, name, value), value


@pytest.mark.parametrize(("table", "name"), EVERY, ids=lambda part: getattr(part, "__name__", part))
def test_every_setting_takes_its_default(table: type[Any], name: str) -> None:
    default = rows(table)[name].default
    if default is not None and default is not rows(PretrainSettings)["text"].default:
        assert check_given(table, {name: default}) == {name: default}


@pytest.mark.parametrize("name", [name for name, row in rows(TrainSettings).items() if row.annotation == "bool"])
def test_a_switch_is_true_or_false_and_not_a_word(name: str) -> None:
    for value in ("false", "true", "no", 0, 1, "", []):
        with pytest.raises(MinipeftError, match=rf"--{name.replace('_', '-')} .* is not True or False"):
            train(**{name: value})
    assert read_settings({name: np.bool_(True)}) == {name: True}


def test_what_has_several_values_takes_one_too_and_nothing_else() -> None:
    assert read_settings({"report_to": "none", "targets": "key", "class_weights": "spam=2"}) == {
        "report_to": (),
        "targets": ["key"],
        "class_weights": {"spam": 2.0},
    }
    for name in ("report_to", "class_weights", "targets", "method_options"):
        with pytest.raises(MinipeftError, match=f"--{name.replace('_', '-')} 5 is not a text or a list of texts"):
            train(**{name: 5})
    with pytest.raises(MinipeftError, match="--class-weights 5 is not"):
        Classifier(class_weights=5).fit(["a", "b"] * 10, ["x", "y"] * 10)  # type: ignore[arg-type]


def test_none_is_the_same_as_not_given_and_a_method_gives_its_fields() -> None:
    assert read_settings({"epochs": None, "quiet": None}) == {}
    read = read_settings({"method": LoRA(rank=4, init="pissa"), "rank": None})
    assert (read["method"], read["rank"], read["method_options"]["init"]) == ("lora", 4, "pissa")
    with pytest.raises(MinipeftError, match="rank is given twice"):
        read_settings({"method": LoRA(rank=4), "rank": 4})


@pytest.mark.parametrize(
    ("there", "new", "resumed"),
    [
        ((), "X", "X"),
        (("X",), "X-2", "X"),
        (("X", "X-3"), "X-4", "X-3"),
        (("X-2",), "X-3", "X-2"),
        (("X", "X-2", "X-10", "X-9"), "X-11", "X-10"),
        (("X", "X-03", "X-seed", "X-2.txt", "XX-7", "X-"), "X-2", "X"),
    ],
)
def test_a_new_run_comes_after_the_highest_number_which_resume_continues(
    there: tuple[str, ...], new: str, resumed: str, tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    assert numbered_folder(tmp_path / "X", resume=False) == tmp_path / new
    assert numbered_folder(tmp_path / "X", resume=True) == tmp_path / resumed


def test_resume_continues_the_run_that_was_started_last(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = {"task": "sst2", "data": str(small_data), "model": str(tiny_checkpoint), "method": "head", "quiet": True}
    common |= {"epochs": 1, "device": "cpu", "train_limit": 16, "eval_limit": 8}
    first = train(**common)
    (tmp_path / "runs" / f"{first.output.name}-3").mkdir()
    second = train(**common)
    assert (first.output.name, second.output.name) == ("sst2-head-seed42", "sst2-head-seed42-4")
    assert train(**common, resume=True).output == second.output


# -- The steps of a run --


@pytest.mark.parametrize("holdout", [0.1, 0.3])
def test_the_steps_are_those_of_the_examples_that_are_left(
    holdout: float, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """With 20 classes of 3 rows, a stratified draw holds out one row of each, whatever fraction is wanted."""
    lines = [json.dumps({"text": f"row {n}", "label": f"class {n % 20}"}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    small = {"batch_size": 2, "grad_accum": 1, "method": "head", "device": "cpu", "quiet": True}
    data = {"data": str(tmp_path / "rows.jsonl"), "validation": str(tmp_path / "validation.jsonl")}
    model = str(tiny_checkpoint)
    result = train(**data, **small, model=model, holdout=holdout, steps=41, output=str(tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    trained = 60 - result.content["holdout"]["examples"]
    assert trained == 40 and config["epochs"] == math.ceil(41 / (trained / 2)) == 3
    assert result.content["last"]["epoch"] == pytest.approx(2.05)


# -- The home folder --


def test_a_home_folder_is_expanded_in_every_path(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "model").symlink_to(tiny_checkpoint)
    (tmp_path / "data").symlink_to(small_data)
    rows_of = [{"text": f"film {n}", "label": ("good", "bad")[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    common = ["--method", "head", "--epochs", "1", "--device", "cpu", "--model=~/model", "--train-limit", "16"]
    train_words = ["train", "--task", "sst2", "--data=~/data", "--output=~/first", *common]
    custom = ["train", "--data=~/rows.jsonl", "--validation=~/rows.jsonl", "--output=~/second", *common]
    commands = [
        train_words,
        [*custom, "--init-adapter=~/first"],
        ["evaluate", "~/second", "--input=~/rows.jsonl", "--report=~/report"],
        ["evaluate", "~/first", "--data=~/data"],
        ["predict", "~/second", "--input=~/rows.jsonl", "--output=~/predicted.csv"],
        ["predict", "~/second/adapter", "--text", "a film"],
        ["export", "~/second", "~/merged"],
    ]
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)
    left = {"first", "second", "report", "predicted.csv", "merged", "model", "data", "rows.jsonl"}
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == left
    assert not Path("~").exists()
