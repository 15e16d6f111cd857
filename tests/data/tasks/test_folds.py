"""Folds and groups: stratified parts of the rows, with equal texts and the rows of a group on one side."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from minipeft import MinipeftError, load_run, train
from minipeft.data.tables.memory import read_memory
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.data.tasks.draw import draw_together
from minipeft.data.tasks.folds import connected_rows, draw_folds
from minipeft.data.tasks.splits import read_split
from minipeft.files import read_json_lines
from minipeft.training.fold_predictions import PREDICTIONS
from minipeft.training.run import load_examples
from minipeft.training.settings.choices import count_examples
from minipeft.training.settings.job import resolve
from minipeft.training.settings.train_settings import read_settings

NONE: dict[str, Any] = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))


def counts(folds: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], num_folds: int) -> np.ndarray[Any, Any]:
    """The number of examples of each class in each fold."""
    return np.array([np.bincount(labels[folds == fold], minlength=labels.max() + 1) for fold in range(num_folds)])


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=90), st.integers(2, 8), st.integers(0, 3))
def test_folds_of_single_rows_have_the_sizes_of_scikit_learn(labels: list[int], num_folds: int, seed: int) -> None:
    y = np.array(labels)
    found = counts(draw_folds(np.arange(len(y)), y, num_folds, seed), y, num_folds)
    assert (np.ptp(found, axis=0) <= 1).all() and np.ptp(found.sum(1)) <= 1
    if np.bincount(y).max() >= num_folds:
        reference = np.empty(len(y), int)
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
        with pytest.warns() if np.bincount(y)[np.unique(y)].min() < num_folds else nullcontext():
            for fold, (_, chosen) in enumerate(folds.split(y, y)):
                reference[chosen] = fold
        assert np.array_equal(np.sort(found, axis=0), np.sort(counts(reference, y, num_folds), axis=0))


@pytest.mark.parametrize("num_groups", [12, 40, 300])
def test_folds_of_groups_are_as_balanced_as_those_of_scikit_learn(num_groups: int) -> None:
    """The classes depend on the group, whose sizes differ."""
    generator = np.random.default_rng(num_groups)
    groups = generator.choice(num_groups, 1000, p=generator.dirichlet(np.full(num_groups, 3.0)))
    y = (generator.random(1000) < generator.random(num_groups)[groups]).astype(int)
    found, reference = draw_folds(groups, y, 4, 0), np.empty(1000, int)
    for fold, (_, chosen) in enumerate(StratifiedGroupKFold(4).split(y, y, groups)):
        reference[chosen] = fold
    assert all(len(set(found[groups == group])) == 1 for group in np.unique(groups))
    spread, expected = (np.ptp(counts(folds, y, 4), axis=0) / np.bincount(y) for folds in (found, reference))
    assert spread.sum() <= 1.1 * expected.sum() + 0.01


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_connected_rows_are_the_components_of_a_plain_search(rows: list[tuple[int, int]]) -> None:
    parts: list[set[int]] = []
    for number, (text, group) in enumerate(rows):
        joined = [part for part in parts if any(text == rows[n][0] or group == rows[n][1] for n in part)]
        parts = [part for part in parts if part not in joined] + [{number}.union(*joined)]
    expected = {number: min(part) for part in parts for number in part}
    assert connected_rows(np.array(rows).ravel(), 2).tolist() == [expected[number] for number in range(len(rows))]


@given(st.lists(st.integers(0, 5), min_size=4, max_size=40), st.floats(0.1, 0.6))
def test_a_drawn_part_has_whole_groups_of_both_sides(groups: list[int], fraction: float) -> None:
    mask = draw_together(groups, None, fraction, 0)
    if len(set(groups)) > 1:
        assert not {g for g, drawn in zip(groups, mask, strict=True) if drawn} & set(np.array(groups)[~mask].tolist())
        assert mask.any() and not mask.all()
    hashes = [hash(f"{group}") for group in groups]  # other numbers in another order, as in another process
    assert (draw_together(hashes, None, fraction, 0) == mask).all()


def table(rows: int = 60) -> dict[str, list[Any]]:
    """Texts of 12 users, of which every tenth row repeats the one before in capitals."""
    texts = [f"text {n - n % 10 // 9}" if n % 10 < 9 else f"TEXT {n - 1}" for n in range(rows)]
    labels, users = ["no" if n % 3 else "yes" for n in range(rows)], [n // 5 for n in range(rows)]
    return {"text": texts, "label": labels, "user": users}


def test_the_folds_of_a_dataset_are_a_partition_that_keeps_texts_and_users_together() -> None:
    data = table()
    for group_column in (None, "user"):
        validated: list[str] = []
        for fold in range(1, 5):
            custom = inspect_custom_data(
                *("auto", read_memory(data)), label_type="classes", fold=f"{fold}/4", group_column=group_column, **NONE
            )
            splits = [read_split(custom.task, split, custom.source).texts for split in ("train", "validation")]
            assert sorted(splits[0] + splits[1]) == sorted(data["text"])
            folded = [{text.lower() for text in texts} for texts in splits]
            assert not folded[0] & folded[1]
            if group_column:
                users = [{data["user"][data["text"].index(text)] for text in texts} for texts in splits]
                assert not users[0] & users[1]
            validated += splits[1]
            assert "fold" in custom.describe()
        assert sorted(validated) == sorted(data["text"])


def test_a_run_on_a_fold_holds_out_whole_groups_and_is_evaluated_on_its_fold_again(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines = ["text,label,user", *(",".join(map(str, row)) for row in zip(*table().values(), strict=True))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "validation.csv").write_text("\n".join(lines[:4]))
    result = train(
        **{"model": str(tiny_checkpoint), "data": str(tmp_path), "task": "own", "steps": 1, "device": "cpu"},
        **{"fold": "2/3", "group_column": "user", "holdout": 0.2, "output": str(tmp_path / "run"), "report_to": "none"},
    )
    assert result.job.config["fold"] == "2/3" and result.job.config["validation"] is None
    parts = result.content["holdout"]["examples"], int(result.job.task.validation_rows.sum())
    assert all(part % 5 == 0 and part > 0 for part in parts)  # users have 5 rows each
    assert "validation.csv is not used: --fold" in " ".join(result.job.data.warnings)
    found = load_run(tmp_path / "run", "cpu").evaluate()
    assert {name: found[name] for name in result.metrics} == pytest.approx(result.metrics, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fold": "0/5"}, "--fold '0/5' is not a fold. Write one such as 2/5"),
        ({"fold": "6/5"}, "--fold '6/5' is not a fold"),
        ({"fold": "1"}, "--fold '1' is not a fold"),
        ({"fold": "1/20", "group_column": "user"}, "12 groups of rows with one text or user, fewer than the 20 parts"),
        ({"group_column": "usr"}, "--group-column names another"),
        ({"fold": "1/2", "validation": "x.csv"}, "--validation x.csv and --fold 1/2 exclude each other"),
        ({"fold": "1/2", "task": "rte", "data": "auto"}, "--fold '1/2' is for custom datasets"),
    ],
)
def test_folds_that_cannot_be_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    lines = ["text,label,user", *(",".join(map(str, row)) for row in zip(*table().values(), strict=True))]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    with pytest.raises(MinipeftError) as raised:
        train(**{"data": str(tmp_path / "own.csv"), "output": str(tmp_path / "run")} | given)
    assert message in str(raised.value) and not (tmp_path / "run").exists()


def test_a_row_without_a_group_is_named(tmp_path: Path) -> None:
    rows = table()
    rows["user"][7] = ""
    rows["user"] = list(map(str, rows["user"]))
    with pytest.raises(MinipeftError, match="index 7: user is missing"):
        inspect_custom_data("auto", read_memory(rows), label_type="classes", group_column="user", **NONE)


def test_groups_of_a_validation_file_that_occur_in_training_are_counted() -> None:
    data = table()
    rows = [{name: column[n] for name, column in data.items()} for n in range(len(data["text"]))]
    validation = [row | {"text": f"new {n}", "user": 3 + 100 * (n > 5)} for n, row in enumerate(rows[:20])]
    for columns, message in (
        (("text", "label", "user"), "6 rows of rows in memory (validation) have a user that occurs in training"),
        (("text", "label"), "rows in memory (validation) has no column 'user'"),
    ):
        other = [{name: row[name] for name in columns} for row in validation]
        custom = inspect_custom_data(
            *("auto", read_memory(rows, other)), label_type="classes", group_column="user", **NONE
        )
        assert [warning.startswith(message) for warning in custom.warnings] == [True], custom.warnings


@pytest.mark.parametrize("source", ["glue", "validation", "drawn", "groups"])
def test_the_steps_are_counted_on_the_rows_that_the_holdout_leaves(
    source: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Equal texts and groups are held out together, so that the number of rows depends on them."""
    rows = table(96)
    data: Any = {"text": rows["text"], "label": rows["label"], "user": [n // 7 for n in range(96)]}
    given: dict[str, Any] = {"data": data, "group_column": "user"} if source == "groups" else {"data": data}
    if source == "validation":
        given |= {"validation": {"text": ["a", "b"], "label": ["yes", "no"]}}
    if source == "glue":
        (tmp_path / "sst2").mkdir()
        for split, column in (("train", rows["text"]), ("validation", ["a", "b"])):
            lines = (f"{text}\t{n % 2}" for n, text in enumerate(column))
            (tmp_path / "sst2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
        given = {"data": str(tmp_path), "task": "sst2"}
    given |= {"model": str(tiny_checkpoint), "output": str(tmp_path / "run"), "holdout": 0.3, "device": "cpu"}
    job = resolve(read_settings(given | {"method": "head"}))
    assert count_examples(job.settings, job.data) == len(load_examples(job).train)


@pytest.mark.parametrize(
    ("labels", "targets", "label_type"),
    [
        ([["b"], ["b", "a"], []], [["b"], ["a", "b"], []], "multilabel"),
        ([0.1, 2.5, 3], [0.1, 2.5, 3], "numbers"),
        (["1", "1.0", "2"], [["1"], ["1"], ["2"]], "classes"),
    ],
)
def test_targets_of_a_fold_are_the_names_that_predictions_have(
    labels: list[Any], targets: list[Any], label_type: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = {"text": [f"text {n}" for n in range(24)], "label": labels * 8}
    settings: dict[str, Any] = {
        "fold": "1/2",
        "epochs": 1,
        "method": "head",
        "eval_limit": 10,
        "device": "cpu",
        "quiet": True,
    }
    train(data=data, label_type=label_type, model=str(tiny_checkpoint), output=str(tmp_path / "run"), **settings)
    found = list(read_json_lines(tmp_path / "run" / PREDICTIONS))
    assert len(found) == 10 and len({row["row"] for row in found}) == 10
    assert [row["target"] for row in found] == [targets[(row["row"] - 1) % 3] for row in found]
