"""Rows for validation, and folds: stratified by class, with equal texts and the rows of a group in one part.

A `task` is a Task; its module imports this one, so this one does not import it.
"""

from array import array
from collections.abc import Sequence
from itertools import compress, islice
from typing import Any

import numpy as np

from minipeft.data.tables.table import Table
from minipeft.data.tasks.draw import VALIDATION_FRACTION, VALIDATION_SEED, draw_together, hash_texts, random_order
from minipeft.problems.metrics import Array


def draw_validation(task: Any) -> Array:
    """Return True for each row of a custom dataset's training file that is drawn for validation, (num_rows,)."""
    if task.train_rows is None:
        hashes = array("q")
        table = hash_texts(task.open_split("train"), task.columns, task.label_column, hashes, task.group_column)
        labels = table.read_labelled([task.label_column])
        targets = task.problem.store(task.problem.read(label, place) for place, (label,) in labels)
        strata, together = task.problem.strata(targets), connected_rows(hashes, 1 + bool(task.group_column))
    else:
        _, strata, together = task.train_rows
    if task.fold is None:
        return draw_together(together, strata, VALIDATION_FRACTION, VALIDATION_SEED)
    fold, num_folds = map(int, task.fold.split("/"))
    return draw_folds(together, strata, num_folds, VALIDATION_SEED) == fold - 1


def split_train_rows(task: Any, limit: int | None) -> tuple[int, Array | None, Any]:
    """Return what `training_strata` does of a custom dataset: without the rows that are drawn for validation."""
    assert task.train_rows is not None
    count, *of_rows = task.train_rows
    rest = np.ones(count, dtype=bool) if task.validation_rows is None else ~task.validation_rows
    strata, together = (None if values is None else np.asarray(values)[rest][:limit] for values in of_rows)
    return len(rest[rest][:limit]), strata, together


def validation_targets(task: Any, limit: int | None = None) -> Any:
    """Return the classes of a custom dataset's validation rows."""
    drawn = task.validation_rows
    if drawn is not None and task.train_rows is not None and task.train_rows[1] is not None:  # they have been read
        return np.asarray(task.train_rows[1])[drawn][:limit].tolist()
    rows = task.open_split(task.validation).read_labelled([task.label_column])
    rows = rows if drawn is None else compress(rows, drawn.tolist())
    return task.problem.store(task.problem.read(value, place) for place, (value,) in islice(rows, limit))


def draw_folds(
    together: Sequence[int] | Array, strata: Sequence[int] | Array | None, num_folds: int, seed: int
) -> Array:
    """Return the fold of each example, from 0, (num_examples,): near-equal counts of each class in every fold.

    Examples with one number in `together` are in one fold. Where there are none, the counts of a class (and the sizes)
    of two folds differ by 1 at most. A pure function of its arguments.
    """
    order = random_order(len(together), seed)
    _, groups, sizes = np.unique(np.asarray(together)[order], return_inverse=True, return_counts=True)
    labels = np.zeros(len(order), dtype=np.int64) if strata is None else np.asarray(strata)[order]
    _, classes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    counts = np.zeros((num_folds, len(totals)))  # of each class in each fold
    folds = np.empty(len(order), dtype=np.int64)

    # The groups of several examples, the largest first: each to the fold that has the least of its classes, which adds
    # least to the sum of (count / total)² over folds and classes.
    by_group, starts = np.argsort(groups, kind="stable"), np.cumsum(sizes) - sizes
    several = np.flatnonzero(sizes > 1)
    for group in several[np.lexsort((by_group[starts[several]], -sizes[several]))]:
        rows = by_group[starts[group] : starts[group] + sizes[group]]
        of_group = np.bincount(classes[rows], minlength=len(totals))
        fold = np.lexsort((counts.sum(1), counts @ (of_group / totals**2)))[0]
        folds[rows] = fold
        counts[fold] += of_group

    # The other examples fill the folds up to equal counts of each class; what is left goes to the smallest folds.
    single = np.flatnonzero(sizes[groups] == 1)
    single = single[np.argsort(classes[single], kind="stable")]
    for rows in np.split(single, np.flatnonzero(np.diff(classes[single])) + 1) if len(single) else ():
        of_class = counts[:, classes[rows[0]]]
        most = min(len(rows), len(rows) // num_folds + 1 + int(np.ptp(of_class)))
        levels = of_class[:, None] + np.arange(most)  # (num_folds, most): of the places that a fold may fill
        chosen = np.lexsort((np.repeat(counts.sum(1), most), levels.ravel()))[: len(rows)] // most
        folds[rows] = chosen
        of_class += np.bincount(chosen, minlength=num_folds)
    found = np.empty_like(folds)
    found[order] = folds
    return found


def connected_rows(hashes: Sequence[int] | Array, num_keys: int) -> Array:
    """Return for each row the index of the first row that must be on its side of every split, (num_rows,).

    Rows with an equal key stay together, and so do two rows that both have a key in common with a third one.

    Args:
        hashes: (num_rows * num_keys,), the hashes of each row's text and group.
        num_keys: 1, or 2 with groups.
    """
    keys = [np.unique(key, return_inverse=True)[1] for key in np.asarray(hashes).reshape(-1, num_keys).T]
    first = np.arange(len(keys[0]))
    while True:
        prev = first
        for key in keys:
            lowest = np.full(len(first), len(first))
            np.minimum.at(lowest, key, first)
            first = lowest[key]
            first = first[first]  # fewer passes over long chains
        if (first == prev).all():
            return first


def describe_shared_groups(table: Table, group_column: str, hashes: Sequence[int] | Array) -> tuple[str, ...]:
    """Return a line on the rows of a validation file whose group occurs in training, if there are any.

    `hashes` are those of the training rows' texts and groups, (num_rows * 2,).
    """
    if group_column not in table.columns:
        return (f"{table.place} has no column {group_column!r}: its groups are not compared with those of training",)
    groups = [hash(str(group)) for _, (group,) in table.read([group_column])]
    shared = int(np.isin(groups, np.asarray(hashes)[1::2]).sum())
    return (f"{shared:,} rows of {table.place} have a {group_column} that occurs in training",) if shared else ()
