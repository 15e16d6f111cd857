"""The synthetic data: sizes, balance, determinism, splits that share nothing, and no label from words alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from scipy.sparse import hstack
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from minipeft.data.tasks import synthetic as standin
from minipeft.data.tasks.synthetic_rte import RTE_WEIGHTS
from minipeft.data.tasks.synthetic_sst2 import BLAME, NEGATORS, PRAISE
from minipeft.errors import MinipeftError

SIZES = {
    ("rte", "train"): 2490,
    ("rte", "validation"): 277,
    ("sst2", "train"): 6000,
    ("sst2", "validation"): 872,
}
TEXTS = {"rte": ["sentence1", "sentence2"], "sst2": ["sentence"]}
LEAK = 0.65  # what a classifier that cannot see the relation between the two sentences must stay below

Columns = dict[str, list[Any]]


def examples(columns: Columns, task: str) -> list[tuple[str, ...]]:
    return list(zip(*(columns[name] for name in TEXTS[task]), strict=False))


@pytest.mark.parametrize(("task", "split"), SIZES)
def test_columns_sizes_and_balance(task: str, split: str) -> None:
    columns = standin.generate(task, split)
    assert list(columns) == [*TEXTS[task], "label", "idx"]
    assert {len(column) for column in columns.values()} == {SIZES[task, split]}
    assert columns["idx"] == list(range(SIZES[task, split]))
    counts = Counter(columns["label"])
    assert set(counts) == {0, 1} and abs(counts[0] - counts[1]) <= 1


@pytest.mark.parametrize("task", standin.TASKS)
def test_no_example_twice_and_no_premise_in_both_splits(task: str) -> None:
    train, validation = (standin.generate(task, split) for split in ("train", "validation"))
    everything = examples(train, task) + examples(validation, task)
    assert len(set(everything)) == len(everything)
    first = TEXTS[task][0]
    assert set(train[first]).isdisjoint(validation[first])


def test_the_classes_are_not_in_blocks() -> None:
    for task, split in SIZES:
        labels = standin.generate(task, split)["label"]
        changes = sum(one != two for one, two in itertools.pairwise(labels))
        assert 0.4 < changes / (len(labels) - 1) < 0.6


def test_another_process_with_another_hash_seed_makes_the_same_data() -> None:
    program = (
        "import hashlib, json; from minipeft.data.tasks import synthetic as standin;"
        "print(hashlib.sha256(json.dumps([standin.generate(t, s) for t in standin.TASKS"
        " for s in ('train', 'validation')]).encode()).hexdigest())"
    )
    here = json.dumps([standin.generate(t, s) for t in standin.TASKS for s in ("train", "validation")])
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    random.seed(1)
    before = random.getstate()
    first = standin.generate("rte", "validation")
    assert random.getstate() == before
    random.seed(2)
    assert standin.generate("rte", "validation") == first


@pytest.mark.parametrize("task", standin.TASKS)
def test_a_caller_may_change_what_it_got(task: str) -> None:
    expected = standin.generate(task, "validation")
    standin.generate(task, "validation")["label"].clear()
    assert standin.generate(task, "validation") == expected


@pytest.mark.parametrize(
    ("task", "split", "named"),
    [
        ("cola", "train", ("'cola'", "rte", "sst2")),
        ("RTE", "train", ("'RTE'", "rte", "sst2")),
        ("rte", "test", ("'test'", "train", "validation")),
        ("sst2", "", ("''", "train", "validation")),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(task: str, split: str, named: tuple[str, ...]) -> None:
    with pytest.raises(MinipeftError) as caught:
        standin.generate(task, split)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in named)


# Which phenomenon made a pair, told from its words alone; the last one takes what is left.
RTE_MARKS: dict[str, Callable[[str, str], bool]] = {
    "quantifiers": lambda premise, hypothesis: premise.split()[0] in ("All", "None"),
    "negation": lambda premise, hypothesis: True,
}


def phenomenon_of(premise: str, hypothesis: str) -> str:
    return next(name for name, mark in RTE_MARKS.items() if mark(premise, hypothesis))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_phenomenon_of_entailment_is_present_as_weighted(split: str) -> None:
    pairs = examples(standin.generate("rte", split), "rte")
    counts = Counter(phenomenon_of(*pair) for pair in pairs)
    weights = {phenomenon.__name__: weight for phenomenon, weight in RTE_WEIGHTS.items()}
    assert set(counts) == set(weights) == set(RTE_MARKS)
    assert min(weights.values()) >= 5
    for name, weight in weights.items():
        assert counts[name] / len(pairs) == pytest.approx(weight / sum(weights.values()), abs=0.04)


def entails(premise: str, hypothesis: str) -> bool:
    """Decide a pair from its words, without the generator: one rule a phenomenon."""
    given, asked = premise.rstrip(".").split(), hypothesis.rstrip(".").split()
    if phenomenon_of(premise, hypothesis) == "quantifiers":
        return (given[0] == "None") == ("not" in asked)
    return ("not" in asked) == any(word in given for word in ("never", "no", "not"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_entailment_labels_follow_from_the_words_of_the_pair(split: str) -> None:
    columns = standin.generate("rte", split)
    for pair, label in zip(examples(columns, "rte"), columns["label"], strict=False):
        assert entails(*pair) == (label == 0), pair


@pytest.mark.parametrize("phenomenon", RTE_WEIGHTS, ids=lambda phenomenon: str(phenomenon.__name__))
def test_a_group_crosses_two_premises_with_two_hypotheses(phenomenon: Callable[[random.Random], Any]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        group = phenomenon(rng)
        premises, hypotheses = ({texts[side] for texts, _ in group} for side in (0, 1))
        assert len(group) == 4 and len(premises) == len(hypotheses) == 2
        for label in (0, 1):  # each sentence once under each label: no sentence alone tells the label
            assert {texts[0] for texts, given in group if given == label} == premises
            assert {texts[1] for texts, given in group if given == label} == hypotheses


@pytest.mark.parametrize(
    "vectorizer",
    [CountVectorizer(), CountVectorizer(binary=True), TfidfVectorizer(), CountVectorizer(ngram_range=(1, 2))],
    ids=["counts", "presence", "tf-idf", "word pairs"],
)
@pytest.mark.parametrize("separate", [False, True], ids=["one vocabulary", "one vocabulary a sentence"])
def test_a_bag_of_words_does_not_solve_entailment(separate: bool, vectorizer: CountVectorizer) -> None:
    train, validation = (standin.generate("rte", split) for split in ("train", "validation"))

    def texts(columns: Columns) -> list[list[str]]:
        if separate:
            return [columns["sentence1"], columns["sentence2"]]
        return [[" ".join(pair) for pair in examples(columns, "rte")]]

    fitted = [clone(vectorizer).fit(column) for column in texts(train)]
    seen, held_out = (
        hstack([one.transform(column) for one, column in zip(fitted, texts(columns), strict=False)])
        for columns in (train, validation)
    )
    model = LogisticRegression(max_iter=2000).fit(seen, train["label"])
    assert model.score(held_out, validation["label"]) < LEAK


def test_remembering_hypotheses_does_not_solve_entailment() -> None:
    train, validation = (standin.generate("rte", split) for split in ("train", "validation"))
    votes: Counter[str] = Counter()
    for hypothesis, label in zip(train["sentence2"], train["label"], strict=False):
        votes[hypothesis] += 1 if label else -1
    guesses = [int(votes[hypothesis] > 0) for hypothesis in validation["sentence2"]]
    right = sum(guess == label for guess, label in zip(guesses, validation["label"], strict=False))
    assert right / len(guesses) < LEAK


def sentiment(sentence: str) -> int:
    """Decide a sentence from its words, without the generator: its deciding clause, judgement, negation."""
    clauses = sentence.split(" , ")
    if " but " in f" {clauses[-1]}":
        deciding = clauses[-1]
    elif "although" in sentence:
        deciding = next(clause for clause in clauses if "although" not in clause)
    else:
        deciding = sentence
    words = deciding.split()
    values = {word in PRAISE for word in words if word in PRAISE + BLAME}
    assert len(values) == 1, sentence
    return int(values.pop() != any(word in NEGATORS for word in words))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_sentiment_labels_follow_from_the_words_of_the_sentence(split: str) -> None:
    columns = standin.generate("sst2", split)
    for sentence, label in zip(columns["sentence"], columns["label"], strict=False):
        assert sentence == sentence.lower()
        assert sentiment(sentence) == label, sentence


def test_taking_a_negation_out_flips_the_sentiment() -> None:
    columns = standin.generate("sst2", "train")
    labels = dict(zip(columns["sentence"], columns["label"], strict=False))
    compared = 0
    for sentence, label in labels.items():
        words = sentence.split()
        without = " ".join(word for word in words if word not in NEGATORS)
        if without != sentence:
            assert labels[without] != label, sentence
            compared += 1
    assert compared / len(labels) > 0.05


def test_exchanging_the_clauses_of_a_contrast_flips_the_sentiment() -> None:
    columns = standin.generate("sst2", "train")
    labels = dict(zip(columns["sentence"], columns["label"], strict=False))
    compared = 0
    for sentence, label in labels.items():
        judgements = [word for word in sentence.split() if word in PRAISE + BLAME]
        if " but " in sentence or "although" in sentence:
            one, two = judgements
            exchanged = " ".join({one: two, two: one}.get(word, word) for word in sentence.split())
            assert labels[exchanged] != label, sentence
            compared += 1
    assert compared / len(labels) > 0.05


def test_no_word_is_both_praise_and_blame() -> None:
    assert set(PRAISE).isdisjoint(BLAME)


def test_sentiment_needs_more_than_single_words() -> None:
    """Words carry most of the signal, as in SST-2, and negation and contrast the rest."""
    train, validation = (standin.generate("sst2", split) for split in ("train", "validation"))
    vectorizer = CountVectorizer().fit(train["sentence"])
    model = LogisticRegression(max_iter=2000).fit(vectorizer.transform(train["sentence"]), train["label"])
    assert 0.65 < model.score(vectorizer.transform(validation["sentence"]), validation["label"]) < 0.85
