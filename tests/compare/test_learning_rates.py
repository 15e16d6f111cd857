"""`--lr auto`: rungs that halve the learning rates, what they cost, and what the tables say of those that stopped."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import contents
from test_compare import write_plan, write_run

from minipeft.cli.cli import main
from minipeft.cli.command_line import command_line
from minipeft.compare.learning_rates import Search, choose_rates, describe_cost, make_searches
from minipeft.compare.plan import Plan, Run, make_plan
from minipeft.errors import MinipeftError
from minipeft.training.settings.recipes import SMALL_LR


@pytest.fixture
def words(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> list[str]:
    """6 epochs of 96 examples are 576 steps: a ninth of them are 64."""
    return [
        *("compare", "--task", "rte", "--method", "lora", "head", "--lr", "auto", "head=1e-3", "--rank", "1", "2"),
        *("--seed", "7", "8", "--epochs", "6", "--batch-size", "1", "--grad-accum", "1", "--warmup-steps", "30"),
        *("--model", str(tiny_checkpoint), "--data", str(small_data), "--output", str(tmp_path / "c"), "--quiet"),
    ]


def plan_of(words: list[str]) -> Plan:
    return make_plan(vars(command_line().parse_args(words)))


class Trained:
    """Writes runs instead of training them; the metric rises with the learning rate, and 10 x the default diverges."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, list[Run]()

    def __call__(self, runs: list[Run], title: str) -> dict[str, str]:
        failed = {run.name: "the loss is nan" for run in runs if run.settings["lr"] > 5 * SMALL_LR["lora"]}
        for run in runs:
            if run.name not in failed and not (self.folder / "runs" / run.name).exists():
                self.runs.append(run)
                write_run(self.folder / "runs" / run.name, run.settings, 0.5 + 20 * run.settings["lr"])
        return failed


def test_the_best_third_of_the_learning_rates_goes_on_and_the_rest_stays_in_the_tables(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder, default = plan_of(words), tmp_path / "c", SMALL_LR["lora"]
    grid = [default * factor for factor in (0.1, 0.3, 1, 3, 10)]
    trained, searches = Trained(folder), make_searches(plan)
    write_plan(folder, plan, {"rte": 32})
    found, without = choose_rates(folder, plan, searches, trained)
    trained([run for run in found.runs if run.settings["method"] == "lora"], "")
    assert not without and len(searches) == 2  # a search for each rank; head has its learning rate
    rungs = [(run.settings["steps"], run.settings["warmup_steps"]) for run in trained.runs if "rung" in run.name]
    assert rungs == [(64, 3)] * 8 + [(192, 10)] * 4  # the warmup is the same part of the steps as in the whole run
    assert all(run.settings["seed"] == 7 and "epochs" not in run.settings for run in trained.runs[:12])
    assert [run.settings["lr"] for run in trained.runs[8:10]] == pytest.approx([3 * default, default])
    full = [run for run in found.runs if run.settings["method"] == "lora"]
    assert {(run.settings["lr"], run.settings["epochs"]) for run in full} == {(3 * default, 6)} and len(full) == 4
    assert describe_cost(make_searches(plan), plan) == (
        "--lr auto: rung 1 10 runs, 640 steps; rung 2 4 runs, 768 steps; the best in full 4 runs, 2,304 steps; "
        "in all 18 runs, 3,712 steps; every learning rate in full would be 20 runs, 11,520 steps"
    )

    for run in found.runs:  # of head
        if not (folder / "runs" / run.name).exists():
            write_run(folder / "runs" / run.name, run.settings, 0.6)
    missing = [run for search in make_searches(plan) for run in search.runs(0) if run.settings["lr"] == grid[-1]]
    for run in missing:  # nothing is left to train, so that the rest is quick
        write_run(folder / "runs" / run.name, run.settings, 0.1)
    before = contents(folder / "runs")
    assert main([*words, "--resume"]) == 0
    assert contents(folder / "runs") == before  # finished rungs are not repeated
    lora = json.loads((folder / "table.json").read_text())["tasks"][0]["rows"][0]
    assert [rate["lr"] for rate in lora["learning_rates"]] == pytest.approx(grid)
    assert [len(rate["rungs"]) for rate in lora["learning_rates"]] == [1, 1, 2, 2, 1]
    assert lora["lr"] == 3 * default and [rate["best"] is None for rate in lora["learning_rates"]] == [
        *(True, True, True, False, True)
    ]
    said, page = capsys.readouterr().out, (folder / "page.html").read_text(encoding="utf-8")
    assert "rung 1: 64 steps" in said and "stopped at rung 2" in said and page.count("stopped at rung 1") == 6


def test_a_best_learning_rate_at_the_end_of_the_searched_grid_is_extended_by_one(
    words: list[str], tmp_path: Path
) -> None:
    plan, folder, smallest = plan_of([*words, "--lr", "lora=auto,7e-5"]), tmp_path / "c", 7e-5
    (search, _) = make_searches(plan)
    assert search.rates[:2] == [smallest, pytest.approx(0.1 * SMALL_LR["lora"])]
    write_plan(folder, plan, {"rte": 32})

    def train(runs: list[Run], title: str) -> dict[str, str]:
        for run in runs:
            write_run(folder / "runs" / run.name, run.settings, 0.9 - 10 * run.settings["lr"])
        return {}

    found, _ = choose_rates(folder, plan, make_searches(plan), train)
    train(found.runs, "")
    assert main([*words, "--lr", "lora=auto,7e-5", "--resume"]) == 0
    extension = json.loads((folder / "table.json").read_text())["extension"]
    assert extension["rows"] == "LoRA r = 1, LoRA r = 2"
    longer = plan_of(shlex.split(extension["command"])[1:])
    assert make_searches(longer)[0].rates[0] == pytest.approx(smallest**2 / (0.1 * SMALL_LR["lora"]), rel=0.05)
    assert [run.name for run in longer.runs] == [run.name for run in plan.runs]


@pytest.mark.parametrize(
    ("total", "steps", "left"), [(10_000, [1112, 3336], 2), (200, [50, 150], 2), (60, [50, 60], 2), (30, [30], 1)]
)
def test_rungs_have_fifty_steps_or_the_whole_run(total: int, steps: list[int], left: int, tmp_path: Path) -> None:
    run = Run("x", {"task": "rte", "method": "head", "seed": 1, "lr": "auto"})
    search, trained = Search(run, [1e-5, 1e-4, 1e-3], total), Trained(tmp_path)
    assert search.steps == steps
    search.rates = [1e-6, *search.rates]
    search.tried[1e-6] = []
    search.keep_best(0, tmp_path, trained(search.runs(0), ""))
    assert search.rates == [1e-3, 1e-4][:left]


def test_where_every_learning_rate_fails_the_runs_say_so(words: list[str], tmp_path: Path) -> None:
    plan = plan_of(words)
    found, without = choose_rates(
        tmp_path, plan, make_searches(plan), lambda runs, title: {run.name: "the loss is nan" for run in runs}
    )
    lora = [run.name for run in found.runs if run.settings["method"] == "lora"]
    assert without == dict.fromkeys(lora, "every learning rate failed, one with: the loss is nan")


@pytest.mark.parametrize(("value", "message"), [("auto,fast", "--lr 'fast'"), ("auto,auto", "given twice")])
def test_what_is_not_a_learning_rate_is_refused(words: list[str], value: str, message: str) -> None:
    arguments: dict[str, Any] = vars(command_line().parse_args([*words, "--lr", f"lora={value}"]))
    with pytest.raises(MinipeftError, match=message):
        make_plan(arguments)
