"""`minipeft compare --folds`: the plan, the test over folds, real runs, their out-of-fold predictions, the bar."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats
from test_compare import run_to_the_end, write_comparison
from tqdm import tqdm

from minipeft.cli.cli import main
from minipeft.cli.command_line import command_line
from minipeft.compare.plan import make_plan
from minipeft.compare.runners.local_runner import log_file, read_progress
from minipeft.errors import MinipeftError


def test_a_plan_has_every_fold_of_every_run_and_its_command_names_their_number() -> None:
    plan = make_plan({"task": ["own"], "method": ["lora", "head"], "rank": ["1", "2"], "folds": 3})
    assert len(plan.runs) == (2 + 1) * 3
    assert [run.settings["fold"] for run in plan.runs] == ["1/3"] * 3 + ["2/3"] * 3 + ["3/3"] * 3
    assert {run.settings["seed"] for run in plan.runs} == {1} and len({run.name for run in plan.runs}) == 9
    assert not any("/" in run.name for run in plan.runs)
    given = vars(command_line().parse_args([*plan.command.split()[1:], "--output", "folder"]))
    assert make_plan(given) == plan
    with pytest.raises(MinipeftError, match="--folds 1 leaves no fold to train on"):
        make_plan({"task": ["own"], "method": ["lora"], "folds": 1})


@pytest.mark.parametrize(("num_folds", "size"), [(2, 0.2), (3, 0.05), (5, 0.02), (5, 0.1), (10, 0.02)])
def test_rows_are_compared_by_fold_with_the_corrected_variance(num_folds: int, size: float, tmp_path: Path) -> None:
    """Against scipy's t-test, whose statistic is divided by the correction; two seeds count as their mean."""
    flags = [*("compare", "--task", "mrpc", "--method", "bitfit", "head", "--epochs", "1"), "--quiet"]
    flags += ["--seed", "1", "2", "--folds", str(num_folds)]

    def value(settings: dict[str, Any]) -> float:
        fold = int(settings["fold"].split("/")[0])
        better = settings["method"] == "bitfit"
        return 0.6 + 0.03 * math.sin(fold) + better * (size + 0.02 * math.cos(3 * fold)) + 0.01 * settings["seed"]

    write_comparison(tmp_path / "c", flags, value)
    assert main([*flags, "--output", str(tmp_path / "c"), "--resume"]) == 0
    table = json.loads((tmp_path / "c" / "table.json").read_text())
    (task,) = table["tasks"]
    folds = [
        {run["fold"]: fmean(r["best"]["value"] for r in row["runs"] if r["fold"] == run["fold"]) for run in row["runs"]}
        for row in task["rows"]
    ]
    one, other = (list(by_fold.values()) for by_fold in folds)
    assert task["rows"][0]["best"] == pytest.approx(
        {"mean": fmean(one), "min": min(one), "max": max(one), "folds": num_folds}
    )
    if num_folds < 3:
        assert task["apart"]["best"] == []
        return
    t = stats.ttest_rel(one, other).statistic / math.sqrt(1 + num_folds / (num_folds - 1))
    expected = 2 * stats.t.sf(abs(t), num_folds - 1)
    assert [pair["above"] for pair in task["apart"]["best"]] == (["BitFit"] if expected < 0.05 else [])
    for pair in task["apart"]["best"]:
        differences = [a - b for a, b in zip(one, other, strict=True)]
        error = stdev(differences) * math.sqrt(1 / num_folds + 1 / (num_folds - 1))
        assert (pair["p"], pair["error"]) == pytest.approx((expected, error), abs=1e-6)
    page = (tmp_path / "c" / "page.html").read_text(encoding="utf-8")
    assert "means over the folds" in page and "Nadeau" in page and "seeds, with" not in page


def test_every_row_is_predicted_by_the_run_that_was_not_trained_on_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [[f"{n} is a number", ("odd", "even")[n % 2], n // 3] for n in range(36)]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label", "group"], *rows])
    flags = [*("compare", "--data", str(tmp_path / "own.csv"), "--method", "head", "--epochs", "1", "--jobs", "2")]
    flags += [*("--folds", "2", "--group-column", "group", "--model", str(tiny_checkpoint), "--device", "cpu")]
    done = run_to_the_end(flags, tmp_path / "c")
    assert done.status == 0, done.err
    assert "2 of 2 runs to train" in done.err and "fewer than 3 folds allow no statement" in done.err
    assert "oof.csv has a prediction for each row" in done.out
    (task,) = json.loads((tmp_path / "c" / "table.json").read_text())["tasks"]
    assert (task["validation_examples"], task["task"], len(task["data"])) == (36, "own", 1)
    lines = list(csv.DictReader((tmp_path / "c" / "oof.csv").open()))
    assert [int(line["row"]) for line in lines] == list(range(1, 37))
    assert [line["target"] for line in lines] == [label for _, label, _ in rows]
    fold_of = dict(zip((group for *_, group in rows), (line["fold"] for line in lines), strict=True))
    assert [fold_of[group] for *_, group in rows] == [line["fold"] for line in lines]
    for run in task["rows"][0]["runs"]:
        of_fold = [line for line in lines if line["fold"] == run["fold"]]
        right = sum(line["label"] == line["target"] for line in of_fold)
        assert right / len(of_fold) == pytest.approx(run["best"]["value"])
        sums = [sum(float(line[f"probability_{name}"]) for name in ("even", "odd")) for line in of_fold]
        assert sums == pytest.approx([1] * len(sums))
    names = [path.name for path in (tmp_path / "c" / "runs").iterdir()]
    assert {read_progress(tmp_path / "c", name) for name in names} == {1.0}  # the bars of finished runs

    before = (tmp_path / "c" / "oof.csv").read_text()
    shutil.rmtree(tmp_path / "c" / "runs" / names[0])  # as if the comparison had been stopped before this run
    assert run_to_the_end(flags, tmp_path / "c", "--resume").status == 0
    assert (tmp_path / "c" / "oof.csv").read_text() == before
    refused = run_to_the_end([*flags[:-1], "cpu", "--folds", "3"], tmp_path / "c", "--resume")
    assert refused.status == 2 and "was started with fold 1/2 2/2, not 1/3 2/3 3/3" in refused.err
    glue = run_to_the_end(["compare", "--task", "rte", "--method", "head", "--folds", "2"], tmp_path / "glue")
    assert glue.status == 2 and "--fold '1/2' is for custom datasets, and rte is GLUE's" in glue.err


def test_the_progress_of_a_command_is_that_of_the_bar_in_its_log(tmp_path: Path) -> None:
    assert read_progress(tmp_path, "run") == 0.0
    path = log_file(tmp_path, "run")
    path.parent.mkdir()
    with path.open("w", encoding="utf-8") as file, tqdm(total=40, unit="step", file=file, mininterval=0) as bar:
        assert read_progress(tmp_path, "run") == 0.0
        for step in range(1, 41):
            bar.update()
            file.flush()
            assert read_progress(tmp_path, "run") == step / 40
