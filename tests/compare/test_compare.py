"""`minipeft compare`: the plan that flags describe, real runs that are killed and go on, tables, and the page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
from browser import DESKTOP, OVERLAPS, PHONE, chromium
from conftest import REPOSITORY, contents, environment, run_command
from hypothesis import given
from hypothesis import strategies as st

from minipeft.cli.cli import main
from minipeft.cli.command_line import command_line
from minipeft.compare.charts import spread_out
from minipeft.compare.plan import Plan, make_plan, read_values, value_for
from minipeft.compare.runners.local_runner import PROGRAM, format_flags
from minipeft.compare.table import standard_error
from minipeft.errors import MinipeftError, public_settings
from minipeft.lease import Lease
from minipeft.training.run_folder.checkpoint_reader import describe_checkpoint

TASKS, METHODS = ["rte", "sst2", "stsb"], ["lora", "bitfit", "full"]
PLACES = ["", *TASKS, *METHODS, *(f"{task}/{method}" for task in TASKS for method in METHODS)]


# The plan


@given(
    st.dictionaries(
        st.sampled_from(PLACES), st.lists(st.floats(0, 1e9), min_size=1, max_size=4, unique=True), min_size=1
    ),
    st.randoms(use_true_random=False),
)
def test_values_come_back_for_where_they_were_given(wanted: dict[str, list[float]], random: Any) -> None:
    """However they are written, in one word with commas or in several, and in any order of the places."""
    words = []
    for place, values in wanted.items():
        cut = random.randint(0, len(values))
        for part in (values[:cut], values[cut:]):
            if part:
                words.append((f"{place}=" if place else "") + ",".join(map(repr, part)))
    read = read_values("lr", words, TASKS, METHODS)
    assert read == wanted
    for task in TASKS:
        for method in METHODS:
            both = f"{task}/{method}"
            if both in wanted:
                expected = (both, wanted[both])
            elif task in wanted and method in wanted and wanted[task] != wanted[method]:
                with pytest.raises(MinipeftError, match=re.escape(f"add {both}=VALUE")):
                    value_for("lr", read, task, method)
                continue
            else:
                place = next((place for place in (task, method, "") if place in wanted), "")
                expected = (place, wanted.get(place, []))
            assert value_for("lr", read, task, method) == expected


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_words_are_values_or_one_line_that_names_the_flag(words: list[str]) -> None:
    for name in ("lr", "epochs", "targets", "model", "method_options"):
        try:
            values = read_values(name, words, TASKS, METHODS)
        except MinipeftError as error:
            assert str(error).startswith(f"--{name.replace('_', '-')}")
        else:
            assert all(isinstance(value, (str, int, float)) for chosen in values.values() for value in chosen)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=10))
def test_labels_that_are_moved_apart_do_not_meet_and_keep_their_order(heights: list[float]) -> None:
    placed = spread_out(heights, 15, 0, 200)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    for one, other in pairwise(order):
        assert placed[other] - placed[one] >= 15 - 1e-9


def plan(**flags: str | bool) -> list[dict[str, Any]]:
    """The runs' settings for flags written as on the command line."""
    words: dict[str, Any] = {name: text.split() if isinstance(text, str) else text for name, text in flags.items()}
    return [run.settings for run in make_plan({"task": ["rte"], "method": ["lora"], **words}).runs]


def test_a_plan_is_the_product_and_methods_without_a_rank_run_once() -> None:
    runs = plan(task="rte sst2", method="lora bitfit full", rank="1 2 4", seed="1 2", lr="1e-3 full=1e-4,3e-4")
    assert len(runs) == 2 * 2 * (3 + 1 + 2)
    lora = [run for run in runs if run["method"] == "lora" and run["task"] == "rte" and run["seed"] == 1]
    assert [(run["rank"], run["lr"]) for run in lora] == [(1, 1e-3), (2, 1e-3), (4, 1e-3)]
    assert {run["lr"] for run in runs if run["method"] == "full"} == {1e-4, 3e-4}
    assert all("rank" not in run for run in runs if run["method"] != "lora")
    assert [run["seed"] for run in runs] == [1] * 12 + [2] * 12  # half of it is a comparison too


def test_a_custom_dataset_names_its_task(tmp_path: Path) -> None:
    words = {"method": ["head"], "data": [str(tmp_path / "reviews.csv")]}
    (tmp_path / "reviews.csv").write_text("text,label\n")
    assert {run.settings["task"] for run in make_plan(words).runs} == {"reviews"}
    for data in ({}, {"data": [str(tmp_path)]}):
        with pytest.raises(MinipeftError, match="--task is missing"):
            make_plan(words | {"data": None} | data)


def test_the_command_and_the_settings_hold_no_secret_of_an_address() -> None:
    plan = make_plan({"task": ["rte"], "method": ["lora"], "data": ["s3://user:secret@bucket/data.csv?token=secret"]})
    assert "s3://bucket/data.csv" in plan.command
    assert "secret" not in plan.command + json.dumps(public_settings(plan.flags))


def test_the_command_of_a_plan_has_every_value() -> None:
    words = {"task": ["rte"], "method": ["lora"], "rank": ["1"], "seed": ["1"], "compile": True}
    command = make_plan(words).command.split()
    given = vars(command_line().parse_args([*command[1:], "--output", "folder"]))
    assert {name: given[name] for name in words} == words


def test_the_flags_of_a_command_are_read_as_they_were_written() -> None:
    settings = {
        "input": Path("a.csv"),
        "echo": ["id", "text"],
        "text_column": "-x",
        "resume": True,
        "pair_column": None,
    }
    given = vars(command_line().parse_args(["predict", "run", *format_flags(settings)]))
    assert {name: given.get(name) for name in settings} == settings | {"input": "a.csv"}


def test_what_is_more_special_comes_first() -> None:
    runs = plan(task="rte sst2", method="lora full", epochs="5 sst2=1 rte/full=9", train_limit="sst2=200", seed="7")
    assert [(r["task"], r["method"], r["epochs"], r.get("train_limit")) for r in runs] == [
        ("rte", "lora", 5, None),
        ("rte", "full", 9, None),
        ("sst2", "lora", 1, 200),
        ("sst2", "full", 1, 200),
    ]
    runs = plan(method="lora full", seed="7", targets="query,key", method_options="lora=rslora=true")
    assert runs[0]["targets"] == ["query", "key"] and runs[0]["method_options"] == ["rslora=true"]
    assert set(runs[1]) == {"task", "method", "seed"}
    assert [run["seed"] for run in plan()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "rte auto"}, "--task auto: in a comparison every task has a name"),
        ({"method": "lora lara"}, "lara"),
        ({"task": "rte rte"}, "--task rte is given twice"),
        ({"seed": "1 2 1"}, "--seed 1 is given twice"),
        ({"lr": "lara=1e-3"}, "--lr 'lara=1e-3': 'lara' is not a task or method of this comparison; one of rte, lora"),
        ({"lr": "1e-3,"}, "--lr '1e-3,': a value is missing"),
        ({"lr": "fast"}, "--lr 'fast' is not a finite number"),
        ({"rank": "1.5"}, "rank"),
        ({"epochs": "1 2"}, "--epochs has 2 values, 1 2; give one"),
        ({"epochs": "rte=1,2"}, "--epochs has 2 values for rte, 1 2; give one"),
        ({"epochs": "rte=1 lora=2"}, "--epochs: rte=1 and lora=2 meet in the runs of rte/lora; add rte/lora=VALUE"),
        ({"method": "bitfit", "rank": "4"}, "--rank 4 has no meaning for bitfit. Leave it out"),
        ({"method": "lora bitfit", "rank": "bitfit=4"}, "--rank 4 has no meaning for bitfit. Leave it out"),
        ({"method_options": "no_such=1"}, "--method-options no_such=1 has no meaning for lora"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_its_flag(flags: dict[str, str], message: str) -> None:
    with pytest.raises(MinipeftError, match=re.escape(message)):
        plan(**flags)


# Real runs


@pytest.fixture(scope="module")
def flags(tiny_checkpoint: Path, small_data: Path) -> list[str]:
    """A method of two seeds, and one whose learning rate is too high for any float."""
    return [
        *("compare", "--task", "rte", "--method", "lora", "head", "--rank", "1", "--seed", "1", "lora=1,2"),
        *("--lr", "1e-3", "head=1e38", "--epochs", "4", "--model", str(tiny_checkpoint), "--data", str(small_data)),
        *("--batch-size", "4", "--grad-accum", "1", "--warmup-steps", "0", "--train-limit", "64", "--device", "cpu"),
        *("--jobs", "2", "--quiet"),
    ]


class Ended(NamedTuple):
    """A comparison that ran to its end in this process; its runs are processes of their own."""

    folder: Path
    status: int
    out: str
    err: str


def run_to_the_end(flags: list[str], folder: Path, *more: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([*flags, "--output", str(folder), *more])
    return Ended(folder, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def unbroken(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run_to_the_end(flags, tmp_path_factory.mktemp("unbroken") / "comparison")


def test_a_comparison_ends_in_tables_a_page_and_run_folders(unbroken: Ended) -> None:
    """The run that diverges is in them with its reason, and the exit status says so."""
    folder = unbroken.folder
    assert unbroken.status == 2
    assert re.fullmatch(
        r"minipeft: 1 of 3 runs failed, the first rte-head-lr1e\+38-seed1 \(step .*nan.*\); the tables hold the "
        r"others, and --resume tries the failed ones again\n",
        unbroken.err,
    )
    names = {"table.json", "table.csv", "page.html", "plan.json", "runs", "logs"}
    assert {path.name for path in folder.iterdir()} - {".lock"} == names
    (task,) = json.loads((folder / "table.json").read_text())["tasks"]
    assert (task["task"], task["metric"], task["validation_examples"]) == ("rte", "accuracy", 32)
    lora, head = task["rows"]
    assert (lora["name"], lora["rank"], lora["lr"], head["name"]) == ("LoRA r = 1", 1, 1e-3, "Head")
    results = [
        json.loads((folder / "runs" / f"rte-lora-r1-lr0.001-seed{seed}" / "result.json").read_text()) for seed in (1, 2)
    ]
    for which in ("best", "last"):
        values = [result[which]["value"] for result in results]
        assert lora[which] == {"median": median(values), "min": min(values), "max": max(values), "seeds": 2}
        assert f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})" in unbroken.out
    assert lora["parameters"] == results[0]["parameters"]
    assert head["best"] is None and list(head["failed"]) == ["rte-head-lr1e+38-seed1"]
    assert "rte-head-lr1e+38-seed1 failed: step" in unbroken.out
    assert "No statement about differences" in unbroken.out and task["apart"] == {"best": [], "last": []}
    lines = list(csv.DictReader((folder / "table.csv").open()))
    assert [(line["method"], line["rank"], line["seeds"], line["failed"]) for line in lines] == [
        ("lora", "1", "2", "0"),
        ("head", "", "0", "1"),
    ]
    assert float(lines[0]["best_median"]) == lora["best"]["median"]
    assert "head-lr1e+38-seed1 failed" in (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.full
def test_a_comparison_that_is_killed_and_interrupted_ends_in_the_same_table(
    unbroken: Ended, flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "comparison"
    command = [sys.executable, "-m", "minipeft", *flags, "--output", str(folder), "--resume"]
    for number, finished in ((signal.SIGKILL, 0), (signal.SIGINT, 1)):
        begun = set(folder.glob("runs/*/checkpoint/*.json"))
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            new = set(folder.glob("runs/*/checkpoint/*.json")) - begun
            if new and len(list(folder.glob("runs/*/result.json"))) >= finished:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
        if number != signal.SIGKILL:
            assert re.fullmatch(r"minipeft: interrupted after \d of 3 runs; resume with --resume\n", said)
            assert not children_in(folder)
    wait_until(lambda: not children_in(folder))
    done = contents(folder / "runs")
    assert run_to_the_end(flags, folder, "--resume").status == 2
    assert without_times(folder) == without_times(unbroken.folder)
    for name, content in contents(folder / "runs").items():
        if name.endswith("result.json") and name in done:
            assert content == done[name]  # a finished run is not repeated


def test_one_s_own_data_are_compared_too_and_a_task_that_is_none_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = [f"{number} is a number,{('odd', 'even', 'round')[number % 3]}" for number in range(40)]
    (tmp_path / "own.csv").write_text("\n".join(["sentence,kind", *rows]))
    common = ["compare", "--method", "head", "--epochs", "1", "--model", str(tiny_checkpoint), "--seed", "1", "--quiet"]
    own = ["--data", str(tmp_path / "own.csv"), "--text-column", "sentence", "--label-column", "kind"]
    done = run_to_the_end([*common, "--task", "numbers", *own], tmp_path / "comparison")
    assert done.status == 0, done.err
    (task,) = json.loads((tmp_path / "comparison" / "table.json").read_text())["tasks"]
    assert (task["task"], task["metric"], task["validation_examples"]) == ("numbers", "accuracy", 4)
    refused = run_to_the_end([*common, "--task", "numbers"], tmp_path / "other")
    assert refused.status == 2 and refused.err.startswith("minipeft: unknown task 'numbers'")
    assert not (tmp_path / "other").exists()


def wait_until(condition: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def children_in(folder: Path) -> list[str]:
    """The runs of a comparison that are still processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if f"--output={folder}/runs/" in command:
            found.append(command)
    return found


def without_times(folder: Path) -> Any:
    """table.json but for what no two runs share."""

    def cut(value: Any) -> Any:
        times = ("date", "seconds", "samples_per_second", "peak_memory_bytes")  # they may run before and after midnight
        if isinstance(value, dict):
            return {name: cut(inner) for name, inner in value.items() if name not in times}
        return [cut(inner) for inner in value] if isinstance(value, list) else value

    return cut(json.loads(without_checkpoints(folder, "table.json")))


def without_checkpoints(folder: Path, name: str) -> str:
    """A file of a comparison, where a failed run has no checkpoint: an interruption in its first epoch leaves one."""
    text = (folder / name).read_text(encoding="utf-8")
    for run in folder.glob("runs/*"):
        text = text.replace(f"({describe_checkpoint(run)})", "(no epoch was finished, so there is no checkpoint)")
    return text


# Tables of runs that are written here, in the format of a run's folder

GLUE = ("sst2", "mrpc", "stsb")
OTHERS = {"sst2": ("accuracy",), "mrpc": ("accuracy", "f1"), "stsb": ("pearson", "spearman"), "rte": ("accuracy",)}
BIG = [
    *("compare", "--task", *GLUE, "--method", "lora", "bitfit", "full", "head", "--rank", "1", "2", "4", "8", "16"),
    *("--lr", "1e-3", "full=1e-4,1e-5", "--epochs", "stsb=1", "6", "--quiet"),
]


def write_comparison(folder: Path, arguments: list[str], value: Callable[[dict[str, Any]], float]) -> None:
    """What a comparison of `arguments` leaves when each run's best value is `value` of its settings."""

    words = vars(command_line().parse_args([*arguments, "--output", str(folder)]))
    made = make_plan(words)
    examples = {"sst2": 872, "mrpc": 408, "stsb": 1500}
    write_plan(folder, made, examples)
    for run in made.runs:
        write_run(folder / "runs" / run.name, run.settings, value(run.settings))


def write_plan(folder: Path, made: Plan, examples: dict[str, int]) -> None:
    folder.mkdir(exist_ok=True)
    plan = {"flags": made.flags, "validation_examples": examples, "runs": [{"name": run.name} for run in made.runs]}
    (folder / "plan.json").write_text(json.dumps(plan))


def write_run(place: Path, settings: dict[str, Any], top: float) -> None:
    place.mkdir(parents=True)
    metrics, epochs = OTHERS[settings["task"]], settings.get("epochs", 1)
    history = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 0.7 * 0.8**epoch,
            "eval_loss": 0.6 * 0.9**epoch,
            **{name: top - 0.1 * abs(epoch - min(epochs, 5)) / epochs for name in metrics},
            "learning_rate": 1e-3,
            "seconds": 10.0,
            "samples_per_second": 9.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    in_method = {"lora": 36_864 * settings.get("rank", 0), "bitfit": 102_144, "full": 124_055_040, "head": 0}
    best = max(history, key=lambda row: row[metrics[0]])
    result = {
        **{"task": settings["task"], "method": settings["method"], "model": "roberta-base", "data": "nyu-mll/glue"},
        **{"metric": metrics[0], "seed": settings["seed"], "train_seconds": 60.0, "samples_per_second": 9.0},
        "best": {"epoch": best["epoch"], "value": best[metrics[0]]},
        "last": {"epoch": epochs, "value": history[-1][metrics[0]]},
        "parameters": {"method": in_method[settings["method"]], "head": 592_130, "total": 124_647_170},
        **{"peak_memory_bytes": 1 << 31, "examples": {"training": 3668, "validation": 408}},
    }
    (place / "result.json").write_text(json.dumps(result))
    (place / "config.json").write_text(json.dumps({"lr": 1e-3, "precision": "fp32", **settings}))
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))


def of_glue(settings: dict[str, Any]) -> float:
    """LoRA rises with the rank by less than its seeds differ, full's higher rate is the better, head is far below."""
    seed = (-0.01, 0.0, 0.012)[settings["seed"] - 1]
    level = {"lora": 0.90, "bitfit": 0.90, "full": 0.95 + 100 * (settings.get("lr") or 0), "head": 0.7}
    return level[settings["method"]] + 0.002 * math.log2(settings.get("rank") or 1) + seed


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue") / "comparison"
    write_comparison(folder, BIG, of_glue)
    assert main([*BIG, "--output", str(folder), "--resume"]) == 0
    return folder


def test_finished_runs_make_their_tables_again_and_the_best_learning_rate_is_kept(
    glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(glue)
    assert main([*BIG, "--output", str(glue), "--resume"]) == 0
    assert contents(glue) == before
    said = capsys.readouterr().out
    assert re.search(
        r"""Full: accuracy against the learning rate
lr +best: median \(min to max\)
1e-05 +0.951 \(0.941 to 0.963\)
0.0001 +0.960 \(0.950 to 0.972\) +shown above, the largest tried""",
        said,
    )
    for task in json.loads(before["table.json"])["tasks"]:
        assert [row["rank"] for row in task["rows"]] == [1, 2, 4, 8, 16, None, None, None]
        full = next(row for row in task["rows"] if row["method"] == "full")
        assert full["lr"] == 1e-4 and full["best"] == pytest.approx(
            {"median": 0.96, "min": 0.95, "max": 0.972, "seeds": 3}
        )
        assert set(full["others"]) == set(OTHERS[task["task"]][1:])
    lines = list(csv.DictReader((glue / "table.csv").open()))
    assert [(line["best_f1"] != "", line["best_spearman"] != "") for line in lines[::8]] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_a_best_learning_rate_at_the_end_of_its_grid_is_called_so_until_the_grid_is_wide_enough(tmp_path: Path) -> None:
    """The command that is printed adds one value on that side; finished runs are kept, and fewer values are refused."""
    folder, rates = tmp_path / "c d", "3e-5 1e-4"
    arguments = ["compare", "--task", "mrpc", "--method", "full", "head", "--seed", "1", "--epochs", "2", "--lr"]
    peak = {3e-5: 0.7, 1e-4: 0.8, 3.3e-4: 0.9, 1.1e-3: 0.85}

    def value(settings: dict[str, Any]) -> float:
        return peak[settings["lr"]] if settings["method"] == "full" else 0.6

    words = [*arguments, *rates.split(), "--output", str(folder), "--resume", "--quiet"]
    write_comparison(folder, words[:-4], value)
    for added in (3.3e-4, 1.1e-3, None):
        assert main(words) == 0
        table = json.loads((folder / "table.json").read_text())
        grid = [rate["lr"] for rate in table["tasks"][0]["rows"][0]["learning_rates"]]
        if added is None:
            assert table["extension"] is None and len(grid) == 4
            break
        assert table["extension"]["rows"] == "Full" and added not in grid
        words = [*shlex.split(table["extension"]["command"])[1:], "--quiet"]
        for run in make_plan(vars(command_line().parse_args(words))).runs:
            if not (folder / "runs" / run.name).exists():
                assert run.settings["lr"] == added and run.settings["method"] == "full"
                write_run(folder / "runs" / run.name, run.settings, value(run.settings))
    assert main([*arguments, *rates.split(), "--output", str(folder), "--resume", "--quiet"]) == 2


def test_a_learning_rate_of_0_is_a_row_of_the_grid_but_has_no_neighbour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--task", "mrpc", "--method", "head", "--seed", "1", "--epochs", "1", "--lr", "0", "1e-4"]
    for number, (more, beyond) in enumerate(((["1e-3"], "1e-05"), ([], None))):
        folder = tmp_path / str(number)
        write_comparison(folder, [*arguments, *more], lambda settings: 0.9 if settings["lr"] == 1e-4 else 0.5)
        assert main([*arguments, *more, "--output", str(folder), "--resume", "--quiet"]) == 0
        extension = json.loads((folder / "table.json").read_text())["extension"]
        assert re.search(r"^0 +0.500 \(one seed\)$", capsys.readouterr().out, re.MULTILINE)
        assert extension is None if beyond is None else f" {beyond} " in extension["command"]


def test_rows_are_apart_beyond_the_seeds_and_the_validation_splits_error(glue: Path) -> None:
    """Checked against the rule, pair by pair, from the runs' own figures."""
    apart = 0
    for task in json.loads((glue / "table.json").read_text())["tasks"]:
        for which in ("best", "last"):
            expected = set()
            for one in task["rows"]:
                for other in task["rows"]:
                    values = [[run[which]["value"] for run in row["runs"]] for row in (one, other)]
                    error = max(
                        standard_error(task["metric"], median(side), task["validation_examples"]) for side in values
                    )
                    if (
                        all(a > b for a in values[0] for b in values[1])
                        and median(values[0]) - median(values[1]) > error
                    ):
                        expected.add((one["name"], other["name"]))
            assert {(pair["above"], pair["below"]) for pair in task["apart"][which]} == expected
            assert ("Full", "Head") in expected and ("LoRA r = 16", "LoRA r = 1") not in expected
            apart += len(expected)
    page = (glue / "page.html").read_text(encoding="utf-8")
    assert apart and "above\u00a0" not in page and "LoRA\u00a0r\u00a0=\u00a01" in page


@pytest.mark.parametrize(
    ("seeds", "size", "expected"),
    [
        ("1 2 3", 0.05, ["BitFit is above Head"]),
        ("1 2 3", 0.0205, []),  # every seed above, but by less than the standard error of 408 examples
        ("1 2", 0.05, []),
        ("1", 0.05, []),
    ],
)
def test_few_seeds_and_small_differences_say_nothing(
    seeds: str, size: float, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--task", "mrpc", "--method", "bitfit", "head", "--epochs", "3", "--seed", *seeds.split()]

    def value(settings: dict[str, Any]) -> float:
        return 0.6 + size * (settings["method"] == "bitfit") + 0.005 * settings["seed"]

    write_comparison(tmp_path / "c", arguments, value)
    assert main([*arguments, "--output", str(tmp_path / "c"), "--resume"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"[A-Z]\w+ is above \w+", said) == expected * 2
    assert ("No statement about differences" in said) == (len(seeds.split()) < 3)
    assert ("None of 1 pairs" in said) == (not expected and len(seeds.split()) == 3)


def test_standard_errors_are_those_of_many_splits() -> None:
    """Against the spread over drawn validation splits: accuracy, and Pearson's correlation of two normal sides."""
    import numpy as np

    from minipeft.problems.class_metrics import matthews_correlation
    from minipeft.problems.numeric_metrics import pearson

    generator = np.random.default_rng(0)
    size, draws, level = 400, 3000, 0.8
    right = generator.random((draws, size)) < level
    labels = generator.integers(0, 2, (draws, size))
    guesses = np.where(right, labels, 1 - labels)
    x, noise = generator.normal(size=(2, draws, size))
    y = level * x + math.sqrt(1 - level**2) * noise
    phi = 2 * level - 1
    assert right.mean(axis=1).std() == pytest.approx(standard_error("accuracy", level, size), rel=0.06)
    drawn = [matthews_correlation(one, other) for one, other in zip(guesses, labels, strict=True)]
    assert np.std(drawn) == pytest.approx(standard_error("matthews_correlation", phi, size), rel=0.06)
    drawn = [pearson(one, other) for one, other in zip(x, y, strict=True)]
    assert np.std(drawn) == pytest.approx(standard_error("pearson", level, size), rel=0.06)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "already holds a comparison. Pass --resume to continue it"),
        (["--seed", "1", "2", "--resume"], "was started with seed 1 2 3, not 1 2. Resume with the same settings"),
        (["--lr", "lora=2e-3", "--resume"], "was started with lr 0.001 full=0.0001 full=1e-05, not 0.001 full"),
        (["--train-limit", "sst2=8", "--resume"], "was started with train_limit by default, not sst2=8"),
    ],
)
def test_a_folder_that_holds_another_comparison_is_refused_and_left_as_it_is(
    more: list[str], message: str, glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(glue)
    assert main([*BIG, "--output", str(glue), *more]) == 2
    assert message in capsys.readouterr().err and contents(glue) == before


def test_what_cannot_be_a_comparison_is_refused_before_anything_is_written(
    tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    start = ["compare", "--task", "rte", "--method", "lora"]
    for more, message in (
        (["--output", str(tmp_path / "mine"), "--resume"], "is not empty and holds no comparison"),
        (["--output", str(tmp_path / "new"), "--data", str(tmp_path)], "no folder rte in it"),
        (["--output", str(tmp_path / "new"), "--data", str(small_data), "--jobs", "0"], "--jobs 0 is not a whole"),
        (
            ["--output", str(tmp_path / "new"), "--data", str(small_data), "--model", "./none"],
            "'./none' is not a folder",
        ),
        (["--output", str(tmp_path / "new"), "--precision", "fp8"], "unknown --precision 'fp8'"),
    ):
        assert main([*start, *more]) == 2
        assert message in capsys.readouterr().err
        assert contents(tmp_path) == {"mine/thesis.txt": b"mine"}


def test_a_run_with_other_settings_under_a_runs_name_is_refused(glue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = glue / "runs" / "mrpc-head-lr0.001-seed2" / "config.json"
    before = path.read_text()
    path.write_text(before.replace('"epochs": 6', '"epochs": 7'))
    try:
        assert main([*BIG, "--output", str(glue), "--resume"]) == 2
        assert "mrpc-head-lr0.001-seed2 was started with epochs 7, not 6" in capsys.readouterr().err
    finally:
        path.write_text(before)


# The page in a real browser


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_right_on_a_phone_and_on_a_desk(dark: bool, glue: Path, unbroken: Ended) -> None:
    """No error, no request, nothing wider than the window, no label over another, all of it to be seen."""
    with chromium() as browser:
        for folder in (glue, unbroken.folder):
            for size in (PHONE, DESKTOP):
                assert browser.open(folder / "page.html", size, dark) == []
                browser.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
                assert browser.evaluate(OVERLAPS) == []
                assert browser.evaluate(OUTSIDE) == []
                assert browser.evaluate(SMALLEST_TEXT) >= 9
                assert browser.evaluate(CONTRAST) >= 4.5
        browser.open(glue / "page.html", PHONE, dark)
        assert browser.evaluate("document.querySelectorAll('svg[role=img]').length") == 3 * 2 + 3 + 2 * 2 * 8
        assert browser.evaluate(NAMELESS) == []
        labels = browser.evaluate("[...document.querySelectorAll('svg .label')].map(label => label.textContent)")
        for label in ("1", "2", "4", "8", "16", "BitFit", "Full", "Head"):
            assert labels.count(label) >= 3, label


def test_the_page_of_one_epoch_states_its_result_once_and_its_only_chart_is_small(tmp_path: Path) -> None:
    arguments = ["compare", "--task", "mrpc", "--method", "bitfit", "head", "--epochs", "1", "--quiet"]
    write_comparison(tmp_path / "c", arguments, of_glue)
    assert main([*arguments, "--output", str(tmp_path / "c"), "--resume"]) == 0
    page = (tmp_path / "c" / "page.html").read_text(encoding="utf-8")
    assert page.count("BitFit is above Head") == 1 and "Last epoch" not in page
    assert "At the best epoch: F1." in page and ">F1<" in page
    with chromium() as browser:
        for size in (PHONE, DESKTOP):
            assert browser.open(tmp_path / "c" / "page.html", size) == []
            assert browser.evaluate(LARGEST_TEXT) <= 20
            assert browser.evaluate(OUTSIDE) == []
            assert browser.evaluate(SCROLLS_SIDEWAYS) == 0


LARGEST_TEXT = """
Math.max(...[...document.querySelectorAll("svg text")]
  .map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))
"""
# Labels that leave the edge of their chart by more than a pixel.
OUTSIDE = """
[...document.querySelectorAll("svg[role=img]")].flatMap(svg => {
  const edge = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < edge.left - 1 || box.right > edge.right + 1
      || box.top < edge.top - 1 || box.bottom > edge.bottom + 1);
  }).map(text => text.textContent);
})
"""
SCROLLS_SIDEWAYS = """
[...document.querySelectorAll("main *:not(svg *)")].filter(element => element.clientWidth
  && getComputedStyle(element).display != "inline" && element.scrollWidth > element.clientWidth + 1).length
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll("svg text")].filter(text => text.getBoundingClientRect().width)
  .map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))
"""
NAMELESS = """
[...document.querySelectorAll("svg[role=img]")].filter(svg => !svg.getAttribute("aria-labelledby").split(" ")
  .every(id => document.querySelectorAll("#" + id).length == 1 && document.getElementById(id).textContent))
  .map(svg => svg.outerHTML)
"""
# WCAG's contrast of the least readable text and mark with the paper.
CONTRAST = """
(() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const against = color => {
    const [a, b] = [light(color), paper].sort((a, b) => b - a);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = [...document.querySelectorAll("p, td, th, li, summary, figcaption, h1, h2, h3")]
    .map(element => getComputedStyle(element).color);
  const drawn = [...document.querySelectorAll("svg text, svg .mark")].map(element => getComputedStyle(element).fill);
  return Math.min(...[...texts, ...drawn].map(against));
})()
"""


def test_help_says_how_values_are_given_and_is_quick_to_import() -> None:
    ended = run_command("-m", "minipeft", "compare", "--help")
    assert ended.returncode == 0 and "TASK/METHOD=VALUE" in ended.stdout and "--train-limit" in ended.stdout
    script = """import sys; from minipeft.cli.command_line import command_line
command_line(); sys.exit('torch' in sys.modules)"""
    assert run_command("-c", script).returncode == 0


def test_a_second_comparison_in_the_same_folder_is_refused(glue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Lease(glue):
        assert main([*BIG, "--output", str(glue), "--resume"]) == 2
        assert f"{glue} is in use by process " in capsys.readouterr().err


def test_a_run_that_a_killed_comparison_is_still_saving_is_waited_for(tmp_path: Path) -> None:
    """The child process does nothing before the lease of its run is free, and then executes the command."""
    with Lease(tmp_path / "run"):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), "no-such-command"]
        waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
    assert waiting.wait(100) == 2  # standard input stays open until then: its end means SIGTERM
    assert b"no-such-command" in waiting.communicate()[1]
