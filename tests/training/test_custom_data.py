"""Runs on a custom dataset, from training to a prediction in a new process; a holdout; TensorBoard's events."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import contents, details_of, run_command
from sklearn.metrics import f1_score

from minipeft import MinipeftError, load_run, train
from minipeft.cli.cli import main
from minipeft.training.progress import best_epoch
from minipeft.training.settings.job import resolve
from minipeft.training.settings.train_settings import read_settings

SMALL: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "grad_accum": 1,
    "device": "cpu",
    "precision": "fp32",
    "quiet": True,
}
WORDS = {"good": ("great", "nice"), "bad": ("awful", "poor"), "so so": ("okay", "fine")}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file of three classes, whose columns have other names."""
    random.seed(0)
    path = tmp_path_factory.mktemp("custom") / "reviews.csv"
    lines = ["id,verdict,body"]
    for number in range(80):
        verdict = random.choice(list(WORDS))
        lines.append(f'{number},{verdict},"a {random.choice(WORDS[verdict])} film, number {number}"')
    path.write_text("\n".join(lines) + "\n")
    return path


COLUMNS = {"text_column": "body", "label_column": "verdict"}


@pytest.fixture(scope="module")
def finished(reviews: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reviews"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        train(data=str(reviews), model=str(tiny_checkpoint), output=str(folder), holdout=0.25, **COLUMNS, **SMALL)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_a_custom_dataset_names_its_labels_everywhere(finished: Path, reviews: Path) -> None:
    content = json.loads((finished / "result.json").read_text())
    assert content["task"] == "reviews" and content["metric"] == "accuracy"
    assert "80 rows, of which 10%" in content["data"] and "3 classes (bad " in content["data"]
    assert details_of(finished / "adapter")["labels"] == ["bad", "good", "so so"]
    record = json.loads((finished / "config.json").read_text())
    assert (record["task"], record["source"], record["label_type"]) == ("reviews", str(reviews), "classes")


def test_it_is_evaluated_and_predicts_as_a_task_of_glue_does(
    finished: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(finished)
    best = json.loads((finished / "result.json").read_text())["best"]
    values = run.evaluate()
    row = rows_of(finished)[best["epoch"] - 1]
    assert values == {name: row[name] for name in ("eval_loss", "accuracy", "macro_f1")}
    assert main(["evaluate", str(finished)]) == 0 and json.loads(capsys.readouterr().out) == values
    whole = run.evaluate_file(str(reviews))
    (tmp_path / "other.jsonl").write_text(
        "".join(
            json.dumps({"text": f"a {word} film", "kind": verdict}) + "\n"
            for verdict in WORDS
            for word in WORDS[verdict]
        )
    )
    assert main(["evaluate", str(finished), "--input", str(tmp_path / "other.jsonl"), "--label-column", "kind"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert set(other) == set(whole) == set(values)
    assert main(["predict", str(finished), "--input", str(tmp_path / "other.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [verdict for verdict in WORDS for _ in range(2)]
    predicted = [line["label"] for line in lines]
    assert other["macro_f1"] == pytest.approx(f1_score(expected, predicted, average="macro"), abs=1e-12)
    assert set(lines[0]["probabilities"]) == set(WORDS)
    assert run.predict(["a great film"])[0]["label"] in WORDS


def test_what_does_not_fit_a_run_on_a_custom_dataset_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("body,verdict\na film,good\nb film,dreadful\n")
    for arguments, message in (
        (
            ["evaluate", "--input", str(tmp_path / "a.csv")],
            "a.csv, line 3: label 'dreadful' is not one of the",
        ),
        (["evaluate", "--split", "test"], "no test split; there are train, validation"),
        (["evaluate", "--data", str(tmp_path)], "evaluate a custom file with --input"),
        (["predict", "--glue-test", str(tmp_path / "out")], "reviews is not a task of GLUE"),
        (["predict", "--text", "a", "--pair", "b"], "give no pair"),
    ):
        assert main([arguments[0], str(finished), *arguments[1:]]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_the_holdout_chooses_the_epoch_and_the_validation_is_reported(finished: Path) -> None:
    content, rows = json.loads((finished / "result.json").read_text()), rows_of(finished)
    best = max(rows, key=lambda row: row["holdout_accuracy"])
    assert content["best"] == {"epoch": best["epoch"], "value": best["accuracy"]}
    assert content["holdout"] == {
        "best": best["holdout_accuracy"],
        "last": rows[-1]["holdout_accuracy"],
        "part": 0.25,
        "examples": 18,  # of the 72 that are not for validation
    }
    assert rows[0]["step"] == 7  # of 54 examples
    assert details_of(finished / "adapter")["epoch"] == best["epoch"]


def test_the_holdout_chooses_where_the_validation_would_choose_otherwise() -> None:
    history = [{"epoch": 1, "accuracy": 0.9}, {"epoch": 2, "accuracy": 0.8}, {"epoch": 3, "accuracy": 0.9}]
    assert best_epoch(history, "accuracy")["epoch"] == 1  # the first of equals
    held = [row | {"holdout_accuracy": value} for row, value in zip(history, (0.5, 0.7, 0.7), strict=True)]
    assert best_epoch(held, "holdout_accuracy") == {"epoch": 2, "accuracy": 0.8, "holdout_accuracy": 0.7}


@pytest.mark.parametrize("part", [0.0, 1.0, -0.1, float("nan"), "x", 0.001])
def test_a_holdout_that_is_no_part_is_refused(
    part: Any, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(MinipeftError, match="--holdout"):
        train(data=str(small_data), model=str(tiny_checkpoint), output=str(tmp_path / "run"), holdout=part, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"holdout": 0.5}, "holdout"),
        ({"text_column": "verdict"}, "text_column"),
        ({"label_column": "id", "label_type": "classes"}, "label_column"),
        ({"pair_column": "id"}, "pair_column"),
        ({"label_column": "id", "label_type": "numbers"}, "label_column"),
        ({"validation": "same file"}, "other training examples"),
        ({"task": "films"}, "task"),
    ],
)
def test_resume_with_another_setting_is_refused_by_its_name(
    change: dict[str, Any], name: str, finished: Path, reviews: Path, tiny_checkpoint: Path
) -> None:
    before = contents(finished)
    given = {**COLUMNS, "holdout": 0.25, **change}
    if "validation" in change:
        given["validation"] = str(reviews)
    with pytest.raises(MinipeftError, match=f"the run has {name}"):
        train(data=str(reviews), model=str(tiny_checkpoint), output=str(finished), resume=True, **given, **SMALL)
    assert contents(finished) == before


def test_resume_refuses_a_file_whose_labels_have_changed(
    finished: Path, reviews: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    common = {"model": str(tiny_checkpoint), "output": str(run), "resume": True, **COLUMNS, **SMALL}
    path = run / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"source": str(tmp_path / "reviews.csv")}))
    (tmp_path / "reviews.csv").write_text(reviews.read_text() + "80,new,a film\n")
    with pytest.raises(MinipeftError, match="the run has labels"):
        train(data=str(tmp_path / "reviews.csv"), holdout=0.25, **common)


def test_another_run_starts_from_its_adapter(
    finished: Path, reviews: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    common = {"model": str(tiny_checkpoint), "init_adapter": str(finished), **SMALL, "epochs": 1}
    train(data=str(reviews), output=str(tmp_path / "custom"), **COLUMNS, **common)
    # Without a model, that of the run.
    result = train(task="sst2", data=str(small_data), output=str(tmp_path / "sst2"), **common | {"model": "auto"})
    assert result.job.config["model"] == str(tiny_checkpoint)
    assert details_of(tmp_path / "sst2" / "adapter")["labels"] == ["negative", "positive"]


def test_numbers_are_learned_and_predicted_as_a_score(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"text": word, "pair": "film", "label": stars} for word, stars in (("great", 4.5), ("poor", 1))] * 10
    (tmp_path / "stars.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data": str(tmp_path / "stars.jsonl"), "pair_column": "pair"}
    result = train(**data, model=str(tiny_checkpoint), output=str(tmp_path / "run"), **SMALL)
    assert result.content["metric"] == "pearson" and "numbers" in result.content["data"]
    run = load_run(tmp_path / "run")
    assert run.evaluate().keys() == {"eval_loss", "pearson", "spearman"}
    assert list(run.predict(["great"], ["film"])[0]) == ["score"]


def test_a_regression_starts_at_the_mean_of_its_labels(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"text": ["a word " * (1 + n % 7) for n in range(40)], "label": [100.5 + n for n in range(40)]}
    settings = SMALL | {"epochs": 1, "lr": 0.0, "quiet": False}
    result = train(data=data, validation=data, model=str(tiny_checkpoint), output=str(tmp_path / "run"), **settings)
    assert result.model.get_parameter("head.out_proj.bias").item() == pytest.approx(120.0)
    assert f"the mean of the labels alone has rmse {np.std(data['label']):.4f}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spam", "settings", "select_by"),
    [
        (3, {}, "accuracy"),
        (1, {}, "macro_f1"),
        (1, {"select_by": "accuracy"}, "accuracy"),
        (3, {"class_weights": "balanced"}, "macro_f1"),
        (3, {"class_weights": "balanced", "holdout": 0.2, "select_by": "auroc"}, "auroc"),
    ],
)
@pytest.mark.parametrize("drawn", [True, False])
def test_rare_classes_are_selected_by_macro_f1(
    drawn: bool, spam: int, settings: dict[str, Any], select_by: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = {
        "text": [f"text {n}" for n in range(100)],
        "label": ["spam" if n % 10 < spam else "ham" for n in range(100)],
    }
    given = settings | ({} if drawn else {"validation": data})
    job = resolve(read_settings({"data": data, "model": str(tiny_checkpoint), "output": str(tmp_path)} | given))
    assert job.config["select_by"] == select_by and select_by in job.task.metrics
    assert job.schedule.select_by == ("holdout_" if "holdout" in settings else "") + select_by


def test_a_run_without_an_output_is_called_after_the_file(
    reviews: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = train(data=str(reviews), model=str(tiny_checkpoint), method="head", **COLUMNS, **SMALL | {"epochs": 1})
    assert str(done.output) == "runs/reviews-head-seed42"


@pytest.mark.full
def test_a_file_of_ones_own_in_real_processes(reviews: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One process and torchrun's two draw the same splits and end within rounding; a bad flag is one line."""
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "no-dropout")
    path = checkpoint / "config.json"
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | still))
    flags = ["--data", reviews, "--text-column", "body", "--label-column", "verdict", "--model", checkpoint]
    flags += [
        "--epochs",
        1,
        "--holdout",
        0.2,
        "--method",
        "head",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--quiet",
        "--output",
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    for name, start in (("one", []), ("two", torchrun)):
        done = run_command(*start, "train.py", *flags, tmp_path / name, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    one, two = (rows_of(tmp_path / name)[0] for name in ("one", "two"))
    for figure in ("train_loss", "eval_loss", "holdout_eval_loss"):
        assert two[figure] == pytest.approx(one[figure], abs=1e-5)
    done = run_command("train.py", *flags, tmp_path / "three", "--label-column", "mark")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "no column 'mark' (there are id, verdict, body); --label-column" in done.stderr


def test_flags_of_ones_own_data_are_refused_for_glue(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    for flags in ({"text_column": "a"}, {"label_type": "numbers"}, {"validation": "a.csv"}):
        with pytest.raises(MinipeftError, match="is for custom datasets, and rte is GLUE's"):
            train(data=str(small_data), model=str(tiny_checkpoint), output=str(tmp_path / "run"), **flags, **SMALL)


def test_a_format_is_given_for_files_with_any_ending(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The run is that of the same files with the ending .conll; it resumes, and evaluates, with its format."""
    sentences = [f"Ada B-person\nsaw O\nfilm O\nnumber O\n{number} O\n" for number in range(24)]
    for folder, ending in (("bare", "txt"), ("named", "conll")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"train.{ending}").write_text("\n".join(sentences[:16]))
        (tmp_path / folder / f"valid.{ending}").write_text("\n".join(sentences[16:]))
    given: dict[str, Any] = {"label_type": "tokens", "model": str(tiny_checkpoint), **SMALL}
    run, data = str(tmp_path / "run"), str(tmp_path / "bare")
    for message, wrong in {
        r"unknown --format 'conl'; one of .* \(did you mean conll\?\)": {"data": data, "file_format": "conl"},
        "--format 'conll' is for files, and rows in memory is not a file": {"data": [{}], "file_format": "conll"},
        "--format 'conll' is for files, and no/data is not a file": {"data": "no/data", "file_format": "conll"},
        "--format 'conll' is for custom datasets, and rte is GLUE's": {"task": "rte", "file_format": "conll"},
        r"no column 'tokens' \(there are text\); --format reads a \.txt file": {"data": f"{data}/train.txt"},
        r"\(there are tokens, ner_tags\); pass --label-type": {"data": f"{tmp_path}/named", "label_type": "auto"},
        "bare: no folder rte in it, .* --format reads any ending": {"data": data},
        "no/data.txt: no such file or folder": {"data": "no/data.txt", "file_format": "conll"},
    }.items():
        with pytest.raises(MinipeftError, match=message):
            train(**given | wrong, output=run)
    named = train(**given, data=str(tmp_path / "named"), output=str(tmp_path / "other"))
    train(**given, data=data, file_format="conll", output=run)
    assert [row["eval_loss"] for row in rows_of(Path(run))] == [row["eval_loss"] for row in named.history]
    with pytest.raises(MinipeftError, match="no column 'tokens'"):
        train(output=run, resume=True, file_format="csv", quiet=True)
    longer = train(**given | {"epochs": 3}, output=run, resume=True)
    assert longer.job.config["file_format"] == "conll" and named.job.config["file_format"] is None
    shards = tmp_path / "shards"  # the same rows, in files with other names
    shards.mkdir()
    for number, part in enumerate((sentences[:8], sentences[8:16])):
        (shards / f"train-0000{number}-of-00002.iob").write_text("\n".join(part))
    shutil.copy(tmp_path / "bare" / "valid.txt", shards / "validation.iob")
    moved = train(**given, data=str(shards), file_format="conll", output=str(tmp_path / "other"), resume=True)
    assert moved.content["best"] == named.content["best"]
    assert load_run(run).evaluate().keys() == load_run(tmp_path / "other").evaluate().keys()


def test_a_file_is_opened_once_for_its_labels_and_once_for_each_split(
    tiny_checkpoint: Path, reviews: Path, tmp_path: Path
) -> None:
    """Python's own audit hook counts; every reader of text files opens them through Python."""
    script = f"""
import collections, json, pathlib, sys
opened = collections.Counter()
def count(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".csv"):
        opened[str(arguments[0]).rpartition("/")[2]] += 1
sys.addaudithook(count)
import minipeft
settings = json.loads({json.dumps(json.dumps(SMALL | COLUMNS | {"epochs": 1, "method": "head"}))})
minipeft.train(model={str(tiny_checkpoint)!r}, **settings, data={str(reviews)!r}, output={str(tmp_path / "drawn")!r})
drawn = dict(opened)
opened.clear()
folder = pathlib.Path({str(tmp_path)!r})
files = dict(data=folder / "train.csv", validation=folder / "dev.csv", output=folder / "given")
minipeft.train(model={str(tiny_checkpoint)!r}, **settings, **files)
print(json.dumps([drawn, opened]))
"""
    for name in ("train.csv", "dev.csv"):
        shutil.copy(reviews, tmp_path / name)
    done = run_command("-c", script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"reviews.csv": 3}, {"train.csv": 2, "dev.csv": 4}]  # a leak is read again


# -- TensorBoard --


def events_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by the name of a figure."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    found = accumulators.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_gets_each_step_and_each_evaluation(finished: Path) -> None:
    events, rows = events_of(finished), rows_of(finished)
    last = rows[-1]["step"]
    assert [step for step, _ in events["step_loss"]] == list(range(1, last + 1))
    assert [step for step, _ in events["learning_rate"]] == list(range(1, last + 1))
    for name in ("train_loss", "eval_loss", "accuracy", "macro_f1", "holdout_accuracy", "samples_per_second"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]
        assert events[name] == expected


def test_a_resumed_run_goes_on_with_its_events_and_has_each_step_once(
    reviews: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint: what it did since is done, and shown, once."""
    from minipeft.training import loop

    settings = {"data": str(reviews), "model": str(tiny_checkpoint), **COLUMNS, **SMALL, "method": "head"}
    train(output=str(tmp_path / "whole"), **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        evaluations: list[int] = []
        evaluate = loop.evaluate_all

        def killed(*given: Any) -> Any:
            evaluations.append(1)
            if len(evaluations) == 2:
                raise KeyboardInterrupt
            return evaluate(*given)

        patch.setattr(loop, "evaluate_all", killed)
        train(output=str(tmp_path / "run"), **settings)
    train(output=str(tmp_path / "run"), resume=True, **settings)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    whole, events = events_of(tmp_path / "whole"), events_of(tmp_path / "run")
    for name in ("step_loss", "learning_rate", "train_loss", "accuracy"):
        assert events[name] == whole[name]


def test_without_tensorboard_there_are_no_events(
    small_data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(data=str(small_data), model=str(tiny_checkpoint), output=str(tmp_path / "run"), method="head", **SMALL)
    assert not (tmp_path / "run" / "tensorboard").exists() and (tmp_path / "run" / "result.json").is_file()


def test_events_that_cannot_be_written_are_said_once_and_end_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from minipeft.training.reporting.trackers import Events

    (tmp_path / "file").write_text("no folder")
    with Events(tmp_path / "file", None, 1) as events:
        for step in range(3):
            events.add(step, {"loss": 1.0})
    assert len([record for record in caplog.records if "cannot report to tensorboard" in record.message]) == 1
    full = Path("/dev/full")
    if full.exists():
        with Events(tmp_path / "events", None, 1) as events:
            events.trackers["tensorboard"].path = full
            events.add(1, {"loss": 1.0})
            events.add(2, {"loss": 1.0})
        assert len(caplog.records) == 2 and "No space left" in caplog.records[-1].message


def test_curves_have_loss_metric_and_learning_rate_and_mark_the_best_epoch(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    monkeypatch.delitem(sys.modules, "minipeft.training.reporting.curves", raising=False)  # conftest's no_plots
    from minipeft.training.reporting.curves import draw

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **more: (drawn.append(self), save(self, *given, **more))
    )
    draw(finished)
    assert (finished / "curves.png").read_bytes()[:4] == b"\x89PNG"
    panels = {axes.get_title(): [line.get_label() for line in axes.lines[:-1]] for axes in drawn[0].axes}
    assert panels == {
        "loss": ["train_loss", "eval_loss", "holdout_eval_loss"],
        "metric": ["accuracy", "macro_f1", "holdout_accuracy", "holdout_macro_f1"],
        "learning rate": ["learning_rate"],
    }
    best = json.loads((finished / "result.json").read_text())["best"]
    assert drawn[0].get_suptitle() == f"reviews, lora: accuracy {best['value']:.3f} in epoch {best['epoch']}"
    for axes in drawn[0].axes:
        assert axes.lines[-1].get_label() == "best epoch" and list(axes.lines[-1].get_xdata()) == [best["epoch"]] * 2
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
