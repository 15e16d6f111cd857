"""Token classification: metrics against seqeval, reading rows, a run, predictions, reports, wrong settings."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused, shared
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from sklearn.metrics import accuracy_score, f1_score
from small_runs import SMALL, rows
from transformers import pipeline

from minipeft import MinipeftError, load_run, train
from minipeft.cli.cli import main
from minipeft.data.tasks.custom import CustomData, inspect_custom_data
from minipeft.data.tasks.folds import validation_targets
from minipeft.data.tasks.splits import read_split
from minipeft.problems.token_labels import TokenLabels, Words, find_entities

TAGS = ("O", "B-loc", "I-loc", "B-per", "I-per")
SENTENCES = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9), min_size=1, max_size=6
)
PEOPLE, PLACES = ["Ada", "Alan", "Grace"], ["Paris", "Rome", "Oslo"]


def one_hot(tags: list[int], count: int = 5) -> torch.Tensor:
    return 4 * torch.eye(count)[tags]


@settings(deadline=None)
@given(SENTENCES)
def test_the_metrics_of_entities_are_seqevals_to_the_digit(sentences: list[list[tuple[int, int]]]) -> None:
    problem = TokenLabels(TAGS)
    labels = [tuple(label for label, _ in sentence) for sentence in sentences]
    guesses = [guess for sentence in sentences for _, guess in sentence]
    found = problem.score(one_hot(guesses), labels, problem.metrics)
    actual = [[TAGS[label] for label, _ in sentence] for sentence in sentences]
    predicted = [[TAGS[guess] for _, guess in sentence] for sentence in sentences]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("precision", "recall", "f1"):
            expected = getattr(seqeval, f"{name}_score")(actual, predicted, zero_division=0)
            assert found[name] == pytest.approx(expected, abs=1e-15)
        by_type = seqeval.classification_report(actual, predicted, output_dict=True, zero_division=0)
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(actual, predicted))
    flat = torch.tensor([label for sentence in labels for label in sentence])
    assert found["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(one_hot(guesses), flat).item())
    report = problem.report(one_hot(guesses), labels)
    for row in report["classes"]:
        expected = by_type.get(row["label"], {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        assert (row["precision"], row["recall"]) == (expected["precision"], expected["recall"])
        assert row["f1"] == pytest.approx(expected["f1-score"]) and row["support"] == expected["support"]
    assert report["averages"]["micro"]["f1"] == found["f1"]
    assert report["confusion_matrix"]["labels"] == ["O", "loc", "per"]
    assert sum(map(sum, report["confusion_matrix"]["rows"])) == len(guesses)


@settings(deadline=None)
@given(SENTENCES)
def test_other_tags_are_scored_word_by_word(sentences: list[list[tuple[int, int]]]) -> None:
    problem = TokenLabels(("ADJ", "NOUN", "VERB", "X", "PUNCT"))
    labels, guesses = zip(*(pair for sentence in sentences for pair in sentence), strict=True)
    found = problem.score(one_hot(list(guesses)), [tuple(l for l, _ in s) for s in sentences], problem.metrics)  # noqa: E741
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert problem.metrics == ("accuracy", "macro_f1")


def test_entities_are_read_as_conlleval_does() -> None:
    tags = ["I-per", "I-per", "B-per", "I-loc", "O", "B-loc", "B-loc", "I-loc"]
    assert find_entities(tags) == [(0, 2, "per"), (2, 3, "per"), (3, 4, "loc"), (5, 6, "loc"), (6, 8, "loc")]
    assert find_entities([]) == find_entities(["O"]) == []


def test_predictions_name_characters_of_the_text() -> None:
    problem, text = TokenLabels(TAGS), "Ada Lovelace lived in  Paris."
    words = Words(text)
    assert list(words) == ["Ada", "Lovelace", "lived", "in", "Paris", "."]
    tags = [3, 4, 0, 0, 1, 0]
    (row,) = problem.predictions(one_hot(tags), TAGS, [words])
    score = round(float(torch.softmax(one_hot([0])[0], 0).max()), 6)
    assert row == {
        "entities": [
            {"label": "per", "start": 0, "end": 12, "text": "Ada Lovelace", "score": score},
            {"label": "loc", "start": 23, "end": 28, "text": "Paris", "score": score},
        ]
    }
    assert text[23:28] == "Paris"
    assert problem.predictions(one_hot(tags), TAGS, [list(words)]) == [{"tags": [TAGS[tag] for tag in tags]}]
    parts = TokenLabels(("NOUN", "X"))
    assert parts.predictions(one_hot([0, 1], 2), parts.labels, [Words("Ada .")]) == [
        {"tags": [["Ada", "NOUN"], [".", "X"]]}
    ]


# -- reading --


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """People and places in two patterns, which a tiny model can learn."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        person, place = draw.choice(PEOPLE), draw.choice(PLACES)
        words = [person, "saw", place, "."] if draw.random() < 0.5 else ["In", place, "lives", person, "."]
        names = {person: "B-per", place: "B-loc"}
        found.append({"tokens": words, "ner_tags": [names.get(word, "O") for word in words]})
    return found


def write_conll(path: Path, found: list[dict[str, Any]], separator: str = "\t") -> Path:
    blocks = [
        "".join(f"{word}{separator}{tag}\n" for word, tag in zip(row["tokens"], row["ner_tags"], strict=True))
        for row in found
    ]
    path.write_text("-DOCSTART- -X- O\n\n" + "\n".join(blocks), encoding="utf-8")
    return path


def write_jsonl(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def inspect(path: Path) -> CustomData:
    names = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))
    return inspect_custom_data("auto", str(path), label_type="tokens", **names)  # type: ignore[arg-type]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    found = sentences(30)
    tags = ["O", "B-loc", "B-per"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=tags))})
    numbered = [row | {"ner_tags": [tags.index(tag) for tag in row["ner_tags"]]} for row in found]
    Dataset.from_list(numbered, features=features).to_parquet(tmp_path / "a.parquet")
    sources = [
        write_jsonl(tmp_path / "a.jsonl", found),
        write_conll(tmp_path / "a.conll", found),
        write_conll(tmp_path / "b.conll", found, " "),
        tmp_path / "a.parquet",
    ]
    splits = []
    for source in sources:
        data = inspect(source)
        assert data.task.labels == tuple(tags) and data.task.metrics[0] == "f1" and not data.warnings
        split = read_split(data.task, "train", data.source)
        splits.append((split.texts, [[tags[tag] for tag in row] for row in split.labels]))
    assert splits[0] == splits[1] == splits[2] == splits[3] and 20 < len(splits[0][0]) < 30
    assert all(list(row["tokens"]) in [r["tokens"] for r in found] for row in found)


def test_real_data_have_the_names_of_their_tags() -> None:
    data = inspect_custom_data(
        "auto",
        str(shared("tokens", "ewt")),
        text_column=None,
        pair_column=None,
        label_column="upos",
        label_type="tokens",
        validation=None,
    )
    assert data.rows == 12_544 and data.task.labels[:3] == ("ADJ", "ADP", "ADV") and len(data.task.labels) == 17
    assert data.task.metrics == ("accuracy", "macro_f1")


def test_the_tags_of_rows_that_are_drawn_for_validation(tmp_path: Path) -> None:
    data = inspect(write_jsonl(tmp_path / "a.jsonl", sentences(30)))
    drawn = read_split(data.task, "validation", data.source).labels
    assert 0 < len(drawn) < 30 and validation_targets(data.task) == drawn


@pytest.mark.parametrize("text", ["[1]", "[1, 2]", "[1] a note", "[x", "[]x"])
def test_a_text_in_brackets_is_a_text(text: str) -> None:
    problem = TokenLabels(TAGS)
    assert problem.read_text(text, "text", "a.csv, line 2") == Words(text)
    assert problem.read_text(np.array(["a", "[1]"]), "text", "texts[0]") == ["a", "[1]"]  # as in pandas' columns
    for words in ([], ["a", "[1]"]):
        found = problem.read_text(json.dumps(words), "text", "a.csv, line 2")
        assert found == words and not isinstance(found, Words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ner_tags": ["O"]}, "line 12: 4 words and 1 tags. Give each word one tag."),
        ({"ner_tags": "O"}, "line 12: the tags are 'O', not a list"),
        ({"tokens": ["a", None, "b", "c"]}, "line 12: tokens is ['a', None, 'b', 'c'], not a list of words"),
        ({"ner_tags": None}, "line 12: the tags are None, not a list"),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    found = [{"tokens": list("abcd"), "ner_tags": ["O", "B-x", "O", "O"]} for _ in range(14)]
    found[11] |= change
    with pytest.raises(MinipeftError) as caught:
        data = inspect(write_jsonl(tmp_path / "a.jsonl", found))
        for split in ("train", "validation"):
            read_split(data.task, split, data.source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_tag_of_the_validation_alone_and_an_i_without_a_b(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"tokens": ["a", "b"], "ner_tags": ["O", "I-x"]}] * 12)
    write_jsonl(folder / "validation.jsonl", [{"tokens": ["a"], "ner_tags": ["B-y"]}])
    data = inspect(folder)
    assert data.warnings == (
        f"{folder / 'train.jsonl'}: 12 I- tags without a B- before them are read as the start of an entity",
    )
    with pytest.raises(MinipeftError, match=r"validation\.jsonl, line 1: tag 'B-y' is not one of the training file's"):
        read_split(data.task, "validation", data.source)
    (tmp_path / "c.conll").write_text("word\n")
    with pytest.raises(MinipeftError, match=r"c\.conll, line 1: the label is missing\. Add it"):
        inspect(tmp_path / "c.conll")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pair-column", "other"], "--pair-column 'other' is not for --label-type tokens. Leave it out."),
        (["--threshold", "0.4"], "--threshold 0.4 is for --label-type multilabel"),
        (["--label-separator", ";"], "--label-separator ';' is for --label-type multilabel"),
        (["--select-by", "pearson"], "pearson"),
    ],
)
def test_settings_of_other_labels_are_refused(
    flags: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(20))
    arguments = ["--data", source, "--label-type", "tokens", "--model", tiny_checkpoint, "--output", tmp_path / "run"]
    error = refused(["train", *arguments, *flags], tmp_path, capsys)
    assert message in error


# -- runs --


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_jsonl(folder / "names.jsonl", sentences(120))
    limits: dict[str, Any] = {"train_limit": None, "eval_limit": None, "epochs": 16, "lr": 5e-3}
    limits["targets"] = ("query", "value", "intermediate")
    given = {"label_type": "tokens", "holdout": 0.2, "class_weights": "balanced", "label_smoothing": 0.05, "seed": 1}
    settings = {**SMALL, **limits, **given, "model": str(tiny_checkpoint), "max_length": 40}
    return train(data=str(folder / "names.jsonl"), output=str(folder / "run"), **settings).output


def test_a_run_learns_and_predicts_what_it_evaluated(finished: Path, tmp_path: Path) -> None:
    result, history = json.loads((finished / "result.json").read_text()), rows(finished)
    assert result["metric"] == "f1" and result["best"]["value"] > 0.9
    best = max(history, key=lambda row: row["holdout_f1"])
    run = load_run(finished)
    values = run.evaluate()
    assert values == pytest.approx({name: best[name] for name in ("eval_loss", *run.task.metrics)}, abs=1e-6)
    found = sentences(20, seed=9)
    tags = [row["tags"] for row in run.predict([row["tokens"] for row in found])]
    expected = seqeval.f1_score([row["ner_tags"] for row in found], tags)
    write_jsonl(tmp_path / "in.jsonl", found)
    assert run.evaluate_file(str(tmp_path / "in.jsonl"))["f1"] == pytest.approx(expected)
    for batch in (1, 7, 10_000):
        alone = load_run(finished)
        alone.settings["max_tokens"] = batch
        assert [one["tags"] for one in alone.predict([one["tokens"] for one in found])] == tags


def test_files_reports_and_folders_of_tags(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sentences(10, seed=3)
    source, output = write_conll(tmp_path / "in.conll", found), tmp_path / "out.jsonl"
    expected = load_run(finished).predict([row["tokens"] for row in found])
    assert main(["predict", str(finished), "--input", str(source), "--output", str(output)]) == 0
    assert [json.loads(line) for line in output.read_text().splitlines()] == expected
    assert "csv" in refused(["predict", finished, "--input", source, "--output", tmp_path / "o.csv"], tmp_path, capsys)
    capsys.readouterr()
    words, text = ["Ada", "saw", "Paris", "."], "Ada saw Paris."
    assert main(["predict", str(finished), "--text", text]) == 0
    (shown,) = capsys.readouterr().out.splitlines()
    (tags,) = load_run(finished).predict([words])
    entities = {(" ".join(words[start:end]), kind) for start, end, kind in find_entities(tags["tags"])}
    assert {(one["text"], one["label"]) for one in json.loads(shown)["entities"]} == entities and entities
    assert all(text[one["start"] : one["end"]] == one["text"] for one in json.loads(shown)["entities"])
    wrong = [{"tokens": ["Ada", "saw", "Rome"], "ner_tags": ["O", "B-per", "B-loc"]}]
    write_jsonl(tmp_path / "wrong.jsonl", wrong)
    report = tmp_path / "report"
    assert main(["evaluate", str(finished), "--input", str(tmp_path / "wrong.jsonl"), "--report", str(report)]) == 0
    content = json.loads((report / "report.json").read_text())
    assert {row["text"] for row in content["mistakes"]} >= {"[Ada] saw Rome", "Ada [saw] Rome"}
    assert {row["label"] for row in content["classes"]} == {"loc", "per"} and (report / "report.html").is_file()


def test_adapter_and_export_open_without_the_run(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    words = [row["tokens"] for row in sentences(8, seed=4)]
    expected = run.predict(words)
    adapter = load_run(finished / "adapter", precision="fp32")
    assert adapter.task.problem == run.task.problem and adapter.predict(words) == expected
    run.export(tmp_path / "export")
    assert load_run(tmp_path / "export", precision="fp32").predict(words) == expected
    theirs = pipeline("token-classification", str(tmp_path / "export"), aggregation_strategy="simple")
    text = "Grace saw Oslo ."
    (row,) = run.predict([text])
    assert {entity["entity_group"] for entity in theirs(text)} == {entity["label"] for entity in row["entities"]}
    card = (finished / "adapter" / "README.md").read_text()
    assert '"token-classification"' in card and "AutoModelForTokenClassification" in card


def test_long_rows_are_windows_or_truncated_with_a_count(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        {name: [value for row in sentences(6, seed) for value in row[name]] for name in ("tokens", "ner_tags")}
        for seed in range(24)
    ]
    write_jsonl(tmp_path / "long.jsonl", found)
    settings = {**SMALL, "train_limit": None, "eval_limit": None, "epochs": 1, "max_length": 16}
    settings |= {"data": str(tmp_path / "long.jsonl"), "label_type": "tokens", "model": str(tiny_checkpoint)}
    train(output=str(tmp_path / "cut"), **settings)
    assert "24 of 24 examples were truncated to 16 tokens" in caplog.text
    caplog.clear()
    windows = train(output=str(tmp_path / "windows"), long_text="window", stride=4, **settings)
    assert "truncated" not in caplog.text
    for row, prediction in zip(found, windows.predict([row["tokens"] for row in found]), strict=True):
        assert len(prediction["tags"]) == len(row["tokens"])
    cut = load_run(tmp_path / "cut").predict([found[0]["tokens"]])[0]["tags"]
    assert len(cut) == len(found[0]["tokens"]) and set(cut[20:]) == {"O"}
    assert np.isfinite(load_run(tmp_path / "cut").evaluate()["eval_loss"])
