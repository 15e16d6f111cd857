"""Out-of-fold predictions: what each run of a cross-validation predicts for the rows that it was not trained on."""

from pathlib import Path
from typing import Any

from minipeft.compare.plan import Run
from minipeft.files import read_json, read_json_lines, write_text
from minipeft.inference.predict_file import csv_columns, csv_line
from minipeft.training.fold_predictions import PREDICTIONS

OUT_OF_FOLD = "oof.csv"
KEYS = ("task", "method", "rank", "lr", "seed")  # of a model for each fold


def write_out_of_fold(folder: Path, runs: list[Run]) -> bool:
    """Write oof.csv from the predictions of the finished runs; return whether there are any.

    A line has the run's KEYS, the fold, the row's number in the training file, its label ("target"), and the columns of
    `minipeft predict --output x.csv`. The rows of each model are in the order of the file.
    """
    lines: dict[tuple[Any, ...], list[tuple[int, str, Any, dict[str, Any]]]] = {}
    columns: dict[str, None] = {}
    for run in runs:
        place = folder / "runs" / run.name
        if not (place / PREDICTIONS).is_file() or not (place / "result.json").is_file():
            continue
        config = read_json(place / "config.json")
        for row in read_json_lines(place / PREDICTIONS):
            number, target, prediction = row.pop("row"), row.pop("target"), csv_columns(row)
            target = ";".join(map(str, target)) if isinstance(target, list) else target
            columns |= dict.fromkeys(prediction)
            model = lines.setdefault(tuple(config[key] for key in KEYS), [])
            model.append((number, config["fold"], target, prediction))
    if not lines:
        return False
    text = [csv_line([*KEYS, "row", "fold", "target", *columns])]
    for keys, found in lines.items():
        for number, fold, target, prediction in sorted(found, key=lambda line: line[0]):
            text.append(csv_line([*keys, number, fold, target, *(prediction.get(column) for column in columns)]))
    write_text(folder / OUT_OF_FOLD, "".join(text))
    return True
